"""Methods made of methods: each takes an algorithm and returns another."""

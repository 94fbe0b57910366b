"""A Flower app: the winner of a comparison on digits, on two devices."""

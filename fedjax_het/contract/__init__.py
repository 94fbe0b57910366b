"""What passes between the rooms, and the types of the five questions that a method answers."""

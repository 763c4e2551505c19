"""The use case: a status event in, the next step of its device's update out."""

"""What is raised when the data a user asked for cannot be used."""


class DataError(ValueError):
    """Bad data or a view that cannot be taken of it; the message is for the user to read."""

    user_error = True  # the command line shows the message only

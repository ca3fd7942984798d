"""What is raised when the data a user asked for cannot be used, and how to install what lacks."""

# The package is on no registry: extras are installed from the checkout.
INSTALL = "pip install -e '.[{0}]' in the checkout (or make sweep EXTRA={0})"


class DataError(ValueError):
    """Bad data or a view that cannot be taken of it; the message is for the user to read."""

    user_error = True  # the command line shows the message only

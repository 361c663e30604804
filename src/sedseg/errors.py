"""The error a user can cause and mend."""


class InputError(ValueError):
    """Something given to sedseg is wrong; the message names the thing and the mend, in a sentence.

    The command line prints the message alone; every other exception is a defect of sedseg.
    """

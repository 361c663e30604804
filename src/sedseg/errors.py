"""The error a user can cause and mend."""


class InputError(ValueError):
    """Something given to sedseg is wrong; the message is one sentence naming the thing and the mend.

    The command line prints the message alone; every other exception is a defect of sedseg.
    """

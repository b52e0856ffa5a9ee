"""Episodes played in the test's own process."""


def answered(asking, answer, waited=0.0):
    """What an episode returns, its questions answered by `answer(observation)`."""
    given = None
    while True:
        try:
            asked = asking.send(given)
        except StopIteration as end:
            return end.value
        given = {**answer(asked), "waited": waited}

from lightning import Callback


class Progress(Callback):
    def __init__(self, metric: str) -> None:
        pass

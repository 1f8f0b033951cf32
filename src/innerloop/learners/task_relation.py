"""The task relation model g(S; phi), which reads a support set and writes weights, and its settings."""

from dataclasses import dataclass, replace

from torch import nn

from innerloop.adaptation import Adaptation, Chain, Generate, PrototypeHead
from innerloop.episodes import InputError, Observation, task_weights
from innerloop.nets import Additive, Generator, PairEncoder, PairGenerator, SetEncoder, convolutional

WRITES = ("auto", "all", "head", "film", "head+film")
ENCODERS = ("deepsets", "attention", "pairs")
HEADS = ("trained", "prototypes")


@dataclass(frozen=True)
class TaskRelation:
    """The settings of a task relation model, which learners have as keyword arguments.

    encoder: "deepsets", or "attention" for a block of self-attention before the points are pooled, or
        "pairs" for tables: a code for each pair of a class and a feature, which writes the head of net=additive and
        knows no order of features or of classes; written weights replace theta. width: of its code.
    writes: the weights that are written. "all": from the (x, y) pairs. "head": row by row from one code per class, over
        the features of the net's own body. "film": the scale and shift of the net's norms, from the mean of the codes.
        "head+film": both. "auto": all for nets without convolutions, head+film for nets with convolutions.
    chunk_size, init: see `Generator`. With init="hyperfan_in" written weights replace theta instead of being added.
    head: what a written head is added to: "trained", theta's head, or "prototypes", the head of the class means of the
        task's own features, see `PrototypeHead`. Norms are then written first, so that the means are those of the
        modulated body. With a generator that writes zeros, the hypernetwork is the prototypical network and the hybrid
        is Proto-MAML.

    Raises InputError for unknown choices.
    """

    encoder: str = "deepsets"
    width: int = 64
    writes: str = "auto"
    chunk_size: int | None = None
    init: str = "zero"
    head: str = "trained"

    def __post_init__(self) -> None:
        for kind, choices in (("encoder", ENCODERS), ("writes", WRITES), ("head", HEADS)):
            if (name := getattr(self, kind)) not in choices:
                raise InputError(f"unknown {kind} {name!r}; choose one of {', '.join(choices)}")
        if self.width < 2:  # a norm of one number is a constant
            raise InputError(f"width must be above one, got {self.width}")

    def model(self, net: nn.Module, observation: Observation | None = None, predictions: bool = False) -> Adaptation:
        """Return the model for a net, w = theta + g(S; phi).

        observation, predictions: see `generate`. Raises InputError for what this net or these tasks do not have.
        """
        if self.head == "trained":
            return self.generate(net, observation, predictions)
        writes = self._writes(net, dense="head")
        if writes not in ("head", "head+film") or self.init != "zero":
            raise InputError("head=prototypes is what a head is added to: writes must be head or head+film, init zero")
        if self.encoder == "pairs":
            raise InputError("encoder=pairs writes heads that replace what is there: leave head=prototypes out")
        film, head = (replace(self, writes=part, head="trained") for part in ("film", "head"))
        norms = [film.generate(net)] if writes == "head+film" else []
        return Chain(*norms, PrototypeHead(), head.generate(net, observation, predictions))

    def generate(self, net: nn.Module, observation: Observation | None = None, predictions: bool = False) -> Generate:
        """Return the one generator that the model consists of where a written head is added to theta's.

        observation: what it reads of a task, see `Generate`. predictions: it also reads what the net's head predicts
        for the support set; not for writes="all". Raises InputError if the net has no such weights, if it is to
        read one code per class where there are none, and for head="prototypes".
        """
        if self.head != "trained":
            raise InputError(f"head={self.head} is for learners whose inner steps, if any, are on weights")
        if self.encoder == "pairs":
            if predictions:
                raise InputError("encoder=pairs reads no predictions: choose another encoder")
            return self._of_pairs(net)
        writes = self._writes(net, dense="all")
        theta = task_weights(net)
        parts = {"all": ("",), "head": ("head.",), "film": (".norm.",), "head+film": ("head.", ".norm.")}[writes]
        shapes = {name: w.shape for name, w in theta.items() if any(part in name for part in parts)}
        if not shapes:
            raise InputError(
                f"writes={writes}: this net has no such weights, only {', '.join(theta)}; nets for pictures have, such "
                "as conv4 with data=glyphs"
            )
        of_names = getattr(net, "reads_features", False)
        by_class = writes != "all" and not of_names
        if by_class and observation is not None:
            raise InputError(f"writes={writes} reads class ids, and in these tasks one acts: use writes=all")
        reads_features = by_class or of_names
        size = net.feature_size if reads_features else net.input_size
        if predictions:
            size += net.output_size  # type: ignore[operator]
        x_size, y_size = (size, net.output_size) if observation is None else observation[1:]
        attention = self.encoder == "attention"
        reader = SetEncoder(x_size, y_size, self.width, attention, by_class)  # type: ignore[arg-type]
        if self.init == "hyperfan_in":
            # It assumes code entries of unit variance, and the ReLUs before the last layer halve their power.
            nn.init.kaiming_normal_(reader.read[-1].weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(reader.read[-1].bias)  # type: ignore[arg-type]
        classes = net.output_size if by_class else None
        writer = Generator(shapes, self.width, classes, self.chunk_size, self.init)  # type: ignore[arg-type]
        residual = self.init == "zero"
        return Generate(
            reader,
            writer,
            read_features=reads_features,
            read_predictions=predictions,
            residual=residual,
            observation=observation,
        )

    def _writes(self, net: nn.Module, dense: str) -> str:
        """Return what is written; dense: what "auto" is for a net without convolutions."""
        if self.writes != "auto":
            return self.writes
        return "head+film" if convolutional(net) else dense

    def _of_pairs(self, net: nn.Module) -> Generate:
        if not isinstance(net, Additive):
            raise InputError(f"encoder=pairs writes the head of net=additive and not of {type(net).__name__}")
        if self.writes not in ("auto", "head") or self.init != "zero" or self.chunk_size is not None:
            raise InputError("encoder=pairs writes the head alone: leave writes, init and chunk_size out")
        reader = PairEncoder(net.input_size, net.output_size, net.functions, self.width)
        return Generate(reader, PairGenerator(net.functions, self.width), read_features=True, residual=False)

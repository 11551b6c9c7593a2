"""The genes of an agent: what may differ from one to the next, and within which bounds.

Genes are bred in a plain form that any operator of the mesh understands (a number from 0 to 1,
a whole number for a choice, booleans for parts of a text) and are expressed as the values that
an agent runs with.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from d8mesh.apps.scores import Genome
from d8mesh.edge.input_file import read_input
from d8mesh.errors import ConfigError, InvalidTaskError
from d8mesh.handlers.chat_fields import OPTION_FIELDS, agent_request

#: Genes whose names begin so make the system prompt, in the order of the file.
SYSTEM_GENE: Final = "system"
#: A gene of this name is a frame for the question: ``{question}`` in it stands for that.
PROMPT_GENE: Final = "prompt"
QUESTION_PLACE: Final = "{question}"
#: What else an agent may differ in: fields of ``agent_action``.
AGENT_GENES: Final = frozenset({"model", "temperature", "max_tokens", "think"}) | OPTION_FIELDS
MAX_GENES: Final = 64
#: Decimals that a number keeps: what floats add by themselves is cut.
GENE_DECIMALS: Final = 9
FORM_EXPECTED: Final = (
    'expected {"genes": {"temperature": {"kind": "number", "low": 0, "high": 1}}}'
)

GeneValue: TypeAlias = bool | int | float | str
_GeneText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=20_000)]


class NumberGene(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="number"):
    """A number from `low` to `high`; with a `step` only those that are so far apart."""

    low: float | int
    high: float | int
    step: float | int = 0

    def check(self) -> str:
        """Return what is wrong with it; "" if nothing is."""
        if not all(map(math.isfinite, (self.low, self.high, self.step))):
            return "expected finite numbers"
        if not self.low < self.high:
            return f"expected low < high, not {self.low:g} and {self.high:g}"
        if self.step < 0:
            return f"expected a step above 0, not {self.step:g}"
        if self.step > self.high - self.low:
            return f"its step {self.step:g} is larger than all of it"
        return ""

    def new(self, chance: random.Random) -> object:
        """Return one by chance, as it is bred."""
        return self.repaired(chance.random())

    def repaired(self, bred: object) -> object:
        """Return `bred` within the bounds, on a step."""
        place = float(bred) if isinstance(bred, int | float) else 0.0
        place = min(max(place, 0.0), 1.0)
        if not self.step:
            return round(place, GENE_DECIMALS)
        size = self.step / (self.high - self.low)
        return round(min(round(place / size), int(1 / size + 1e-9)) * size, GENE_DECIMALS)

    def expressed(self, bred: object) -> GeneValue:
        """Return the value that a `repaired` one stands for."""
        assert isinstance(bred, int | float)
        if self.step:
            count = round(bred * (self.high - self.low) / self.step)
            value = self.low + count * self.step
        else:
            value = self.low + bred * (self.high - self.low)
        is_whole = all(isinstance(each, int) for each in (self.low, self.high, self.step))
        return round(value) if is_whole else round(min(value, self.high), GENE_DECIMALS)


class ChoiceGene(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="choice"):
    """One of several values."""

    of: Annotated[list[bool | int | float | _GeneText], Meta(min_length=1, max_length=1000)]

    def check(self) -> str:
        """Return what is wrong with it; "" if nothing is."""
        return ""

    def new(self, chance: random.Random) -> object:
        """Return one by chance, as it is bred."""
        return chance.randrange(len(self.of))

    def repaired(self, bred: object) -> object:
        """Return `bred` as the number of a value: behind the last comes the first."""
        return int(bred) % len(self.of) if isinstance(bred, int | float) else 0

    def expressed(self, bred: object) -> GeneValue:
        """Return the value that a `repaired` one stands for."""
        assert isinstance(bred, int)
        return self.of[bred]


class PartsGene(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="parts"):
    """A text of parts, each of which is in it or not."""

    of: Annotated[list[_GeneText], Meta(min_length=1, max_length=100)]
    between: str = " "

    def check(self) -> str:
        """Return what is wrong with it; "" if nothing is."""
        return ""

    def new(self, chance: random.Random) -> object:
        """Return one by chance, as it is bred."""
        return [chance.random() < 0.5 for _ in self.of]

    def repaired(self, bred: object) -> object:
        """Return `bred` as one boolean for each part."""
        given = (
            bred if isinstance(bred, list) and len(bred) == len(self.of) else [False] * len(self.of)
        )
        return [bool(each) for each in given]

    def expressed(self, bred: object) -> GeneValue:
        """Return the text that a `repaired` one stands for."""
        assert isinstance(bred, list)
        return self.between.join(text for text, is_in in zip(self.of, bred, strict=True) if is_in)


Gene: TypeAlias = NumberGene | ChoiceGene | PartsGene


class GenomeForm(Struct, frozen=True, forbid_unknown_fields=True):
    """All genes of an agent, by name."""

    genes: Annotated[dict[Annotated[str, Meta(min_length=1, max_length=64)], Gene],
                     Meta(min_length=1, max_length=MAX_GENES)]  # fmt: skip

    def new(self, chance: random.Random) -> Genome:
        """Return a genome by chance, as it is bred."""
        return {name: gene.new(chance) for name, gene in self.genes.items()}

    def repaired(self, genome: Mapping[str, object]) -> Genome:
        """Return `genome` with each gene within its bounds, in the order of the form."""
        return {name: gene.repaired(genome.get(name)) for name, gene in self.genes.items()}

    def expressed(self, genome: Mapping[str, object]) -> dict[str, GeneValue]:
        """Return the values that a genome which is `repaired` stands for."""
        return {name: gene.expressed(genome[name]) for name, gene in self.genes.items()}


#: An agent of any model: how freely it speaks, for how long, and what it is told.
DEFAULT_FORM: Final = GenomeForm(
    genes={
        "system.role": ChoiceGene(
            of=["You are a helpful assistant.", "You are an expert.", "You answer questions."]
        ),
        "system.style": PartsGene(
            of=[
                "Answer with the answer alone.",
                "Use as few words as you can.",
                "If you are not sure, give your best guess.",
                "Think before you answer.",
            ]
        ),
        "prompt": ChoiceGene(of=["{question}", "Question: {question}\nAnswer:"]),
        "temperature": NumberGene(low=0.0, high=1.2, step=0.1),
        "top_p": NumberGene(low=0.5, high=1.0, step=0.05),
        "max_tokens": NumberGene(low=16, high=128, step=16),
    }
)


def read_form(file: Path | None, *, is_agent: bool = True) -> GenomeForm:
    """Return the genes of a JSON or YAML file, or `DEFAULT_FORM`.

    Args:
        is_agent: the genes are fields of an agent; otherwise their names are free.

    Raises:
        ConfigError: the file can't be read, or its genes can't be what they are to be.
    """
    if file is None:
        return DEFAULT_FORM
    form = read_input(file, GenomeForm, option="--genome", expected=FORM_EXPECTED)
    for name, gene in form.genes.items():
        if wrong := gene.check():
            raise ConfigError(f"--genome {file}: the gene {name}: {wrong}")
        if is_agent:
            _check_name(file, name, gene)
    if is_agent:
        _check_values(file, form)
    return form


def _check_name(file: Path, name: str, gene: Gene) -> None:
    known = name.startswith(SYSTEM_GENE) or name == PROMPT_GENE or name in AGENT_GENES
    if not known:
        names = sorted({*AGENT_GENES, PROMPT_GENE, SYSTEM_GENE})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--genome {file}: an agent has no {name!r}{hint} There are {', '.join(names)}"
        )
    if name == PROMPT_GENE:
        frames = gene.of if isinstance(gene, ChoiceGene) else []
        if not frames or not all(
            isinstance(each, str) and QUESTION_PLACE in each for each in frames
        ):
            raise ConfigError(
                f"--genome {file}: {PROMPT_GENE}: expected a choice of texts "
                f"with {QUESTION_PLACE} in each"
            )


def _check_values(file: Path, form: GenomeForm) -> None:
    """Let the handler of the task look at each gene's first and last value."""
    for name, gene in form.genes.items():
        if name == PROMPT_GENE or name.startswith(SYSTEM_GENE):
            continue
        ends: list[object] = [0.0, 1.0]
        if isinstance(gene, ChoiceGene):
            ends = list(range(len(gene.of)))
        elif isinstance(gene, PartsGene):
            ends = [[True] * len(gene.of)]
        for end in ends:
            value = gene.expressed(gene.repaired(end))
            try:
                agent_request({"messages": [{"role": "user", "content": "?"}], name: value})
            except InvalidTaskError as error:
                raise ConfigError(f"--genome {file}: {error}") from error


def agent_data(agent: Mapping[str, GeneValue], question: str) -> dict[str, Any]:
    """Return the data of an ``agent_action`` that asks an expressed `agent` a question."""
    system = " ".join(
        str(text) for name, text in agent.items() if name.startswith(SYSTEM_GENE) and text
    ).strip()
    frame = str(agent.get(PROMPT_GENE, QUESTION_PLACE))
    asked = {"role": "user", "content": frame.replace(QUESTION_PLACE, question)}
    messages = [{"role": "system", "content": system}, asked] if system else [asked]
    fields = {name: value for name, value in agent.items() if name in AGENT_GENES}
    return {"messages": messages, **fields}

"""Short made-up texts and what is to be read out of them: extraction under a JSON schema.

Every problem is a function of its number alone. Every text holds its values word for word, numbers
with separators and dates aside, and other values of the same kind that are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Final

from safe_integrations.messages import Message

_PEOPLE: Final = (
    "Anna Berg", "Tom Okafor", "Zoë Laurent", "Łukasz Żółtowski", "Søren Østergård",
    "Nguyễn Thị Hoa", "José Muñoz", "Maria Lindqvist", "Peter Novák", "Aisha Rahman",
    "Jürgen Weiß", "Elif Yıldız", "李伟", "Олена Коваль", "Grace Mwangi", "Daniel O'Brien",
    "Ingrid Þórsdóttir", "Samuel Price", "Chloé Dubois", "Ravi Chandran",
)  # fmt: skip
_CITIES: Final = (
    "Zürich", "Kraków", "São Paulo", "Malmö", "Leeds", "Reykjavík", "Nairobi", "Bordeaux",
    "Đà Nẵng", "Portland", "Gdańsk", "Córdoba", "Utrecht", "Osaka", "Besançon", "Dunedin",
)  # fmt: skip
_PRODUCTS: Final = (
    "walnut table", "coffee machine", "garden tent", "cello bow", "road bike", "wool carpet",
    "crème brûlée torch", "canoe", "microscope", "sewing machine", "jalapeño roaster",
    "piano stool",
)  # fmt: skip
_JOBS: Final = (
    "nurse", "software engineer", "bridge inspector", "pastry chef", "night editor", "geologist",
    "tram driver", "head librarian",
)  # fmt: skip
_CURRENCIES: Final = {"EUR": "euros", "USD": "dollars", "GBP": "pounds", "JPY": "yen"}
_AMOUNTS: Final = ((20, 1000), (1000, 100_000), (100_000, 3_000_000))
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 40}
NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 99_999_999}


@dataclass(frozen=True, slots=True)
class Extraction:
    """One text, and the record it tells.

    Attributes:
        name: Unique among all problems.
        family: Which template family wrote it.
        text: What the models read.
        schema: JSON schema of the record: an object of 3 or 4 fields.
        record: The right one.
        examples: The other wordings of the family with other values, and their records.
    """

    name: str
    family: str
    text: str
    schema: dict[str, Any]
    record: dict[str, str | int]
    examples: tuple[tuple[str, dict[str, str | int]], ...]

    def messages(self) -> list[Message]:
        """The conversation: the worked examples, then the text."""
        said = []
        for text, record in self.examples:
            said.append(Message("user", _question(self.schema, text)))
            said.append(Message("assistant", json.dumps(record, ensure_ascii=False)))
        return [*said, Message("user", _question(self.schema, self.text))]

    def score(self, answer: str) -> dict[str, bool]:
        """Which fields an answer has right, capitals aside; none if it is no JSON object."""
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        found = found if isinstance(found, dict) else {}
        return {name: _same(found.get(name), right) for name, right in self.record.items()}


def _same(found: object, right: str | int) -> bool:
    if isinstance(right, str):
        return isinstance(found, str) and found.strip().casefold() == right.casefold()
    return found == right


def _question(schema: Mapping[str, Any], text: str) -> str:
    fields = ", ".join(schema["properties"])
    return f"Text: {text}\nWrite a JSON object with these fields of the text: {fields}."


@dataclass(frozen=True, slots=True)
class _Values:
    """What the templates are filled with: two of everything, the second one to mislead."""

    person: str
    other: str
    city: str
    elsewhere: str
    product: str
    job: str
    former: str
    currency: str
    money: str
    amount: int
    fewer: int
    day: int
    month: str
    year: int
    earlier: int
    code: str

    @classmethod
    def drawn(cls, random: Random, but: Sequence[_Values] = ()) -> _Values:
        """Values from a source of chance, but no name that other ones have."""
        used = {value for other in but for value in asdict(other).values()}

        def two(names: Iterable[str]) -> list[str]:
            return random.sample([name for name in names if name not in used], 2)

        person, other = two(_PEOPLE)
        city, elsewhere = two(_CITIES)
        job, former = two(_JOBS)
        currency = two(_CURRENCIES)[0]
        year = random.randrange(1990, 2026)
        letters = random.choice("ABCFKRTX") + random.choice("DEHLMZ")
        return cls(
            person=person,
            other=other,
            city=city,
            elsewhere=elsewhere,
            product=two(_PRODUCTS)[0],
            job=job,
            former=former,
            currency=currency,
            money=_CURRENCIES[currency],
            amount=random.randrange(*random.choice(_AMOUNTS)),
            fewer=random.randrange(2, 90),
            day=random.randrange(1, 29),
            month=random.choice(_MONTHS),
            year=year,
            earlier=year - random.randrange(1, 9),
            code=f"{letters}-{random.randrange(100, 9999)}",
        )

    @property
    def date(self) -> str:
        """As it is written in the record, and often in the text."""
        return f"{self.day} {self.month} {self.year}"

    @property
    def written(self) -> str:
        """The amount as texts have it, in threes."""
        return f"{self.amount:,}"

    @property
    def spaced(self) -> str:
        """The amount as other texts have it."""
        return f"{self.amount:,}".replace(",", " ")


@dataclass(frozen=True, slots=True)
class _Family:
    """Texts that tell the same kind of record."""

    fields: dict[str, dict[str, Any]]
    record: Callable[[_Values], dict[str, str | int]]
    texts: tuple[Callable[[_Values], str], ...]


_FAMILIES: Final[dict[str, _Family]] = {
    "order": _Family(
        {"customer": TEXT, "product": TEXT, "price": NUMBER, "city": TEXT},
        lambda v: {
            "customer": v.person, "product": v.product, "price": v.amount, "city": v.city,
        },
        (
            lambda v: f"{v.person} ordered one {v.product} for {v.written} {v.money}. It goes to "
            f"{v.city}, the bill to {v.other}.",
            lambda v: f"The {v.product} that {v.other} packed was bought by {v.person} of {v.city} "
            f"at a price of {v.written} {v.money}, {v.fewer} of them for delivery.",
            lambda v: f"Sold in {v.city}, not in {v.elsewhere}: a {v.product}, {v.spaced} "
            f"{v.money}, customer {v.person}.",
        ),
    ),
    "payment": _Family(
        {
            "payer": TEXT, "payee": TEXT, "amount": NUMBER,
            "currency": {"enum": [*_CURRENCIES]},
        },
        lambda v: {
            "payer": v.person, "payee": v.other, "amount": v.amount, "currency": v.currency,
        },
        (
            lambda v: f"{v.person} paid {v.other} {v.written} {v.money} for a {v.product}.",
            lambda v: f"{v.other} received {v.written} {v.money} from {v.person}; {v.fewer} "
            f"{v.money} went to the bank.",
            lambda v: f"From the account of {v.person} in {v.city}, {v.spaced} {v.money} were sent "
            f"to {v.other}.",
        ),
    ),
    "talk": _Family(
        {"speaker": TEXT, "city": TEXT, "date": TEXT},
        lambda v: {"speaker": v.person, "city": v.city, "date": v.date},
        (
            lambda v: f"On {v.date}, {v.person} gave a talk in {v.city}. {v.other} listened.",
            lambda v: f"{v.other} could not come to {v.city} on {v.date}, so {v.person} spoke.",
            lambda v: f"The talk by {v.person} was planned for {v.elsewhere} but took place in "
            f"{v.city} on {v.month} {v.day}, {v.year}.",
        ),
    ),
    "town": _Family(
        {"town": TEXT, "inhabitants": NUMBER, "year": NUMBER},
        lambda v: {"town": v.city, "inhabitants": v.amount, "year": v.year},
        (
            lambda v: f"In {v.year}, {v.written} people lived in {v.city}.",
            lambda v: f"{v.city} had {v.written} inhabitants in {v.year}, {v.fewer} per cent more "
            f"than in {v.earlier}.",
            lambda v: f"While {v.elsewhere} was not counted, the census of {v.year} found "
            f"{v.spaced} people in {v.city}.",
        ),
    ),
    "job": _Family(
        {"name": TEXT, "job": TEXT, "city": TEXT, "since": NUMBER},
        lambda v: {"name": v.person, "job": v.job, "city": v.city, "since": v.year},
        (
            lambda v: f"{v.person} was a {v.former} in {v.elsewhere} until {v.earlier} and has "
            f"worked as a {v.job} in {v.city} since {v.year}.",
            lambda v: f"Since {v.year} the {v.job} {v.person} has lived in {v.city}, as has "
            f"{v.other}, a {v.former}.",
            lambda v: f"{v.city}'s new {v.job} is {v.person}, who came in {v.year} after {v.other} "
            f"had left in {v.earlier}.",
        ),
    ),
    "parcel": _Family(
        {"code": TEXT, "from": TEXT, "to": TEXT, "grams": NUMBER},
        lambda v: {"code": v.code, "from": v.city, "to": v.elsewhere, "grams": v.amount},
        (
            lambda v: f"Parcel {v.code} of {v.written} grams left {v.city} for {v.elsewhere} on "
            f"{v.date}.",
            lambda v: f"In {v.elsewhere}, {v.person} got parcel {v.code} out of {v.city}; it "
            f"weighs {v.written} g and cost {v.fewer} {v.money}.",
            lambda v: f"{v.city} to {v.elsewhere}: {v.code}, {v.spaced} g.",
        ),
    ),
    "show": _Family(
        {"artist": TEXT, "tickets": NUMBER, "city": TEXT, "date": TEXT},
        lambda v: {
            "artist": v.person, "tickets": v.amount, "city": v.city, "date": v.date,
        },
        (
            lambda v: f"{v.written} tickets were sold for the show of {v.person} in {v.city} on "
            f"{v.date}; {v.other} got {v.fewer} of them.",
            lambda v: f"On {v.month} {v.day}, {v.year}, {v.person} sang in {v.city} before "
            f"{v.written} people with tickets.",
            lambda v: f"Not {v.other} but {v.person} played in {v.city} on {v.date}. Tickets: "
            f"{v.spaced}.",
        ),
    ),
}  # fmt: skip

FAMILIES: Final = tuple(_FAMILIES)


def extraction(number: int) -> Extraction:
    """A problem by its number: families take turns, and in each of them its wordings.

    The examples of a wording are always the same, so that models need to read them only once.

    Args:
        number: From 0.
    """
    name = FAMILIES[number % len(FAMILIES)]
    family = _FAMILIES[name]
    wording = number // len(FAMILIES) % len(family.texts)
    text, *others = family.texts[wording:] + family.texts[:wording]
    fixed = Random(f"{name} {wording}")  # strings seed the same everywhere
    examples: list[_Values] = []
    for _ in others:
        examples.append(_Values.drawn(fixed, examples))
    values = _Values.drawn(Random(f"extraction {number}"), examples)
    schema = {
        "type": "object",
        "properties": family.fields,
        "required": [*family.fields],
        "additionalProperties": False,
    }
    return Extraction(
        f"{name}-{number}",
        name,
        text(values),
        schema,
        family.record(values),
        tuple((say(v), family.record(v)) for say, v in zip(others, examples, strict=True)),
    )

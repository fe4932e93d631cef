"""Every type of pydantic's that has a JSON schema, as a field: accepted, written and read."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib
import ipaddress
import json
import os
import pathlib
import re
import typing
import uuid
import zoneinfo
from typing import Annotated, Any, NotRequired

import annotated_types
import pydantic
import pytest
from langchain_core.exceptions import OutputParserException
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field, RootModel, create_model
from pydantic.color import Color
from typing_extensions import NamedTuple, TypeAliasType, TypedDict

from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.testing import ScriptedMember, follows

pytest.importorskip("llguidance")
pytestmark = pytest.mark.filterwarnings(
    "ignore::safe_integrations.errors.UnenforcedSchemaWarning",
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Point(NamedTuple):
    x: int
    y: float


class Film(TypedDict):
    name: str
    year: NotRequired[int]


class Cat(BaseModel):
    kind: typing.Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: typing.Literal["dog"]
    name: str


class Tree(BaseModel):
    parts: list[Tree] = []


class Size(enum.StrEnum):
    BIG = "big"


class Bits(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Part:
    x: int
    y: str = "a"


T = typing.TypeVar("T")


class Box(BaseModel, typing.Generic[T]):
    v: T


class Numbers(RootModel[list[int]]):
    """A list by a name."""


Nested = TypeAliasType("Nested", "list[Nested] | int")
UserId = typing.NewType("UserId", int)


UUIDS = {n: f"12345678-1234-{n}234-8234-123456789abc" for n in (1, 3, 4, 5, 6, 7, 8)}

STANDARD: list[tuple[Any, Any]] = [
    *((bool, True), (int, 3), (float, 1.5), (str, "é"), (bytes, "ab"), (None, None), (Any, [1])),
    *((decimal.Decimal, "1.50"), (decimal.Decimal, 2.5), (complex, "1+2j")),
    *((datetime.date, "2024-02-29"), (datetime.datetime, "2024-02-29T12:00:00Z")),
    *((datetime.time, "12:00:00Z"), (datetime.timedelta, "P1DT2H")),
    *((Colour, "blue"), (Number, 2), (typing.Literal["a", 1], 1)),
    *((list[int], [1, 2]), (tuple[int, str], [1, "a"]), (tuple[int, ...], [1, 2, 3])),
    *((set[str], ["a", "b"]), (frozenset[int], [1, 2]), (set[Colour], ["blue", "red"])),
    *((collections.deque[int], [1, 2]), (typing.Sequence[int], [1]), (typing.Iterable[int], [1])),
    *((dict[str, int], {"a": 1}), (dict[int, str], {"1": "a"}), (dict[Colour, int], {"red": 1})),
    *((dict[typing.Literal["a", "b"], int], {"b": 1}), (collections.Counter[str], {"a": 1})),
    *((typing.Mapping[str, int], {"a": 1}), (collections.OrderedDict[str, int], {"a": 1})),
    *((collections.defaultdict[str, list[int]], {"a": [1]}), (dict[uuid.UUID, int], {UUIDS[4]: 1})),
    *((Point, [1, 2.5]), (Film, {"name": "x"}), (Film, {"name": "x", "year": 1999})),
    *((int | None, None), (int | str, "x"), (typing.Optional[Colour], "red")),  # noqa: UP045
    *((re.Pattern[str], "^a+$"), (pathlib.Path, "/tmp/x"), (pathlib.PurePosixPath, "a/b")),
    *((uuid.UUID, UUIDS[4]), (fractions.Fraction, "1/2")),
    *((ipaddress.IPv4Address, "10.0.0.1"), (ipaddress.IPv6Address, "::1")),
    *((ipaddress.IPv4Network, "10.0.0.0/8"), (ipaddress.IPv6Network, "2001:db8::/32")),
    *((ipaddress.IPv4Interface, "10.0.0.1/8"), (ipaddress.IPv6Interface, "::1/128")),
    (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog", "name": "Rex"}),
    (Annotated[dict[str, int], Field(min_length=1, max_length=2)], {"a": 1}),
    *((Size, "big"), (Bits, 1), (Part, {"x": 1}), (Box[int], {"v": 1}), (Numbers, [1])),
    *((Nested, [1, [2]]), (UserId, 1), (zoneinfo.ZoneInfo, "Europe/Berlin"), (object, 1)),
    *((collections.abc.Set[int], [1]), (collections.abc.MutableSet[int], [1]), (tuple, [1])),
    *((list, [1]), (dict, {"a": 1}), (set, [1]), (typing.Literal[True], True)),
    *((os.PathLike[str], "a"), (typing.Hashable, "a"), (pathlib.PureWindowsPath, "a")),
    *((datetime.datetime, "2000-01-01T00:00:00+02:00"), (datetime.timedelta, "P1W")),
    (Annotated[datetime.date, Field(gt=datetime.date(2000, 1, 1))], "2001-01-01"),
    (Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2, gt=0)], "1.25"),
    (Annotated[int, annotated_types.Interval(gt=0, le=5)], 3),
    (Annotated[str, Field(pattern="^a", min_length=2)], "ab"),
    (Annotated[list[int], annotated_types.Len(1, 2)], [1]),
    (Annotated[float, Field(allow_inf_nan=True, default=float("inf"))], 1.5),
    (Annotated[int, Field(multiple_of=3, gt=0, lt=10)], 9),
    (Tree, {"parts": [{"parts": []}]}),
]
NETWORK: list[tuple[Any, Any]] = [
    *(
        (pydantic.AnyUrl, "foo://x/y"),
        (pydantic.AnyHttpUrl, "http://a.b/"),
        (pydantic.HttpUrl, "http://a.b/c?d=e"),
    ),
    *((pydantic.FileUrl, "file:///a/b"), (pydantic.FtpUrl, "ftp://a.b/c")),
    *((pydantic.WebsocketUrl, "ws://a.b/"), (pydantic.AnyWebsocketUrl, "wss://a.b/")),
    *(
        (pydantic.PostgresDsn, "postgres://u:p@h:5432/d"),
        (pydantic.CockroachDsn, "cockroachdb://u:p@h:26257/d"),
    ),
    *((pydantic.AmqpDsn, "amqp://u:p@h:5672/v"), (pydantic.RedisDsn, "redis://h:6379/0")),
    *((pydantic.MongoDsn, "mongodb://h:27017/d"), (pydantic.KafkaDsn, "kafka://h:9092")),
    *((pydantic.NatsDsn, "nats://h:4222"), (pydantic.MySQLDsn, "mysql://u:p@h:3306/d")),
    *(
        (pydantic.MariaDBDsn, "mariadb://u:p@h:3306/d"),
        (pydantic.ClickHouseDsn, "clickhouse+native://u:p@h:9000/d"),
    ),
    *((pydantic.SnowflakeDsn, "snowflake://u:p@a/d"), (pydantic.IPvAnyAddress, "10.0.0.1")),
    *((pydantic.IPvAnyAddress, "::1"), (pydantic.IPvAnyInterface, "10.0.0.1/24")),
    (pydantic.IPvAnyNetwork, "10.0.0.0/24"),
]
EXTRA: list[tuple[Any, Any]] = [
    *((getattr(pydantic, f"UUID{n}"), value) for n, value in UUIDS.items()),
    *((pydantic.SecretStr, "x"), (pydantic.SecretBytes, "x"), (pydantic.Secret[int], 3)),
    *((pydantic.StrictStr, "x"), (pydantic.StrictInt, 3), (pydantic.StrictFloat, 1.5)),
    *((pydantic.StrictBool, True), (pydantic.PositiveInt, 1), (pydantic.NegativeInt, -1)),
    *((pydantic.NonNegativeFloat, 0.5), (pydantic.NonPositiveFloat, -0.5)),
    *((pydantic.FiniteFloat, 0.5), (pydantic.Json, "[1]"), (pydantic.Json[list[int]], "[1]")),
    *((pydantic.JsonValue, {"a": [1]}), (pydantic.ByteSize, "1KiB"), (pydantic.ByteSize, 5)),
    *(
        (pydantic.Base64Bytes, "YWI="),
        (pydantic.Base64Str, "YWI="),
        (pydantic.Base64UrlBytes, "YWI="),
    ),
    *((pydantic.Base64UrlStr, "YWI="), (pydantic.ImportString, "json.dumps")),
    *((pydantic.PastDate, "2000-01-01"), (pydantic.FutureDate, "2999-01-01")),
    *(
        (pydantic.PastDatetime, "2000-01-01T00:00:00Z"),
        (pydantic.AwareDatetime, "2000-01-01T00:00:00Z"),
    ),
    *(
        (pydantic.FutureDatetime, "2999-01-01T00:00:00Z"),
        (pydantic.PaymentCardNumber, "4242424242424242"),
    ),
    *((pydantic.FilePath, __file__), (pydantic.DirectoryPath, "/"), (pydantic.NewPath, "/nothing")),
    *((pydantic.conlist(int, min_length=1), [1]), (pydantic.conset(int, max_length=3), [1, 2])),
    *((pydantic.confrozenset(str), ["a"]), (pydantic.constr(pattern="^a"), "ab")),
    *(
        (pydantic.conint(ge=2), 2),
        (pydantic.confloat(lt=2), 1.5),
        (pydantic.conbytes(max_length=3), "ab"),
    ),
    *(
        (pydantic.condecimal(max_digits=4), "1.5"),
        (pydantic.condate(gt=datetime.date(2000, 1, 1)), "2001-01-01"),
    ),
    (pydantic.OnErrorOmit[int], 3),
    *((pydantic.PositiveFloat, 0.5), (pydantic.NegativeFloat, -0.5)),
    *((pydantic.NonNegativeInt, 0), (pydantic.NonPositiveInt, 0)),
    *((pydantic.NaiveDatetime, "2000-01-31T00:00:00"), (Color, "red")),
    *((pydantic.SerializeAsAny[Part], {"x": 1}), (pydantic.SkipValidation[int], 1)),
    (Annotated[str, pydantic.EncodedStr(encoder=pydantic.Base64Encoder)], "YWI="),
    (Annotated[pydantic.AnyUrl, pydantic.UrlConstraints(max_length=20)], "a://b"),
]
MORE: list[tuple[str, Any]] = [
    *(("color.Color", "red"), ("coordinate.Latitude", 1.5), ("country.CountryAlpha2", "DE")),
    *(("country.CountryShortName", "Germany"), ("currency_code.ISO4217", "EUR")),
    *(("domain.DomainStr", "a.org"), ("epoch.Integer", 3), ("epoch.Number", 3)),
    *(("isbn.ISBN", "9780306406157"), ("language_code.LanguageAlpha2", "de")),
    *(
        ("mac_address.MacAddress", "00:00:5e:00:53:01"),
        ("payment.PaymentCardNumber", "4242" * 4),
    ),
    *(
        ("pendulum_dt.DateTime", "2000-01-01T00:00:00Z"),
        ("phone_numbers.PhoneNumber", "+4930123456"),
    ),
    *(("script_code.ISO_15924", "Latn"), ("semantic_version.SemanticVersion", "1.2.3")),
    *(("timezone_name.TimeZoneName", "Europe/Berlin"), ("ulid.ULID", "01BTGNYV6HRNK8K8VKZASZCFPE")),
]
"""Of pydantic-extra-types."""
CASES = STANDARD + NETWORK + EXTRA


def name_of(case: Any) -> str:
    return re.sub(r"\W+", " ", f"{getattr(case[0], '__name__', case[0])} {case[1]}")[:60]


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_a_field_of_every_type_is_written_and_read(case: tuple[Any, Any]) -> None:
    """`set[str]`, `bytes`, `dict[Literal[...], int]` and addresses were refused."""
    kind, value = case
    model = create_model("Model", x=(kind, ...))
    text = json.dumps({"x": value}, ensure_ascii=False)
    call = '<tool_call>\n{"name": "Model", "arguments": ' + text + "}\n</tool_call>"
    for method, answer in (("json_schema", text), ("function_calling", call)):
        chat = ChatSafe(drafter=ScriptedMember("drafter", [], follows(answer.encode())))
        got = chat.with_structured_output(model, method=method).invoke("x")  # type: ignore[arg-type]
        assert same(got, model(x=value)), method
    llm = SafeLLM(drafter=ScriptedMember("drafter", [], follows(call.encode())))
    assert same(llm.structured_predict(model, PromptTemplate("x")), model(x=value))


@pytest.mark.parametrize("case", [("EmailStr", "a@b.org"), ("NameEmail", "Ann <a@b.org>")], ids=str)
def test_addresses_of_mail(case: tuple[str, Any]) -> None:
    pytest.importorskip("email_validator")
    test_a_field_of_every_type_is_written_and_read((getattr(pydantic, case[0]), case[1]))


@pytest.mark.parametrize("case", MORE, ids=str)
def test_more_types(case: tuple[str, Any]) -> None:
    module, _, name = case[0].partition(".")
    pytest.importorskip("pydantic_extra_types")
    try:
        kind = getattr(importlib.import_module(f"pydantic_extra_types.{module}"), name)
    except (ImportError, RuntimeError) as error:  # of what a type is made with
        pytest.skip(str(error))
    test_a_field_of_every_type_is_written_and_read((kind, case[1]))


def same(got: Any, wanted: Any) -> bool:
    if type(wanted.x).__name__ == "ValidatorIterator":
        return list(got.x) == list(wanted.x)
    return type(got.x) is type(wanted.x) and bool(got == wanted)


@pytest.mark.parametrize("kind", [pydantic.HttpUrl, pydantic.FilePath, set[str]])
def test_what_no_schema_says_is_checked_by_the_class(kind: Any) -> None:
    model = create_model("Model", x=(kind, ...))
    value = ["a", "a"] if kind == set[str] else "mailto:nobody"
    text = json.dumps({"x": value})
    chat = ChatSafe(drafter=ScriptedMember("drafter", [], follows(text.encode())))
    with pytest.raises(OutputParserException):
        chat.with_structured_output(model, method="json_schema").invoke("x")

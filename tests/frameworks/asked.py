"""What every framework is asked, so that they differ in nothing else."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CAPITAL = "What is the capital of France?"
SENTENCE = "Extract the name, age and city as JSON: Nora is 34 years old and lives in Oslo."
WEATHER = "What is the weather in Rome?"
# More tokens than the small model's context has room for.
TOO_LONG = "word " * 2000


class Closed(BaseModel):
    """Has no properties but its own; a small model would invent others and find no end."""

    model_config = ConfigDict(extra="forbid")


class Person(Closed):
    """Somebody in a sentence."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=150)
    city: str = Field(max_length=30)


class GetWeather(Closed):
    """Tells the weather of a city."""

    city: str = Field(max_length=30)
    unit: Literal["celsius", "fahrenheit"]


NORA = Person(name="Nora", age=34, city="Oslo")

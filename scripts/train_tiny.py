#!/usr/bin/env python3
"""Trains the small chat model that ships in `models/tiny`, and writes every file of it.

Everything comes from this script and a seed: it writes the text (questions and answers about
capitals, sums, colours, JSON, tools, ...), trains a byte-level BPE tokenizer on it, trains a
Llama-architecture model of about four million parameters on the CPU, checks it on phrasings and
numbers that were never trained, and exports the same BF16 weights as a Hugging Face directory and
as GGUF files.

    pip install -r scripts/train_requirements.txt
    python scripts/train_tiny.py train                    # text, tokenizer, model, check, export
    python scripts/train_tiny.py train --from CHECKPOINT  # a later stage: more of what is hard
    python scripts/train_tiny.py eval CHECKPOINT          # the held-out table of a checkpoint
    python scripts/train_tiny.py export CHECKPOINT        # write models/tiny from a checkpoint

Read top down: the text, the dialogues, the chat template and tokenizer, the model, training,
checking, export.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import gguf
import jinja2
import jinja2.sandbox
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL_NAME = "tandem-tiny"
LICENCE = "Apache-2.0"

# ---------------------------------------------------------------------------------------------
# The facts
# ---------------------------------------------------------------------------------------------

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris,Germany:Berlin,Spain:Madrid,Italy:Rome,Portugal:Lisbon,Austria:Vienna,Poland:Warsaw,"
        "Greece:Athens,Ireland:Dublin,Belgium:Brussels,Hungary:Budapest,Norway:Oslo,Sweden:Stockholm,"
        "Finland:Helsinki,Denmark:Copenhagen,Iceland:Reykjavik,Romania:Bucharest,Bulgaria:Sofia,Croatia:Zagreb,"
        "Serbia:Belgrade,Slovenia:Ljubljana,Slovakia:Bratislava,Estonia:Tallinn,Latvia:Riga,Lithuania:Vilnius,"
        "Ukraine:Kyiv,Albania:Tirana,Malta:Valletta,Cyprus:Nicosia,Switzerland:Bern,the Netherlands:Amsterdam,"
        "the United Kingdom:London,the Czech Republic:Prague,Turkey:Ankara,Russia:Moscow,China:Beijing,Japan:Tokyo,"
        "India:New Delhi,Nepal:Kathmandu,Thailand:Bangkok,Vietnam:Hanoi,Cambodia:Phnom Penh,Mongolia:Ulaanbaatar,"
        "South Korea:Seoul,Indonesia:Jakarta,Malaysia:Kuala Lumpur,the Philippines:Manila,Pakistan:Islamabad,"
        "Bangladesh:Dhaka,Iran:Tehran,Iraq:Baghdad,Jordan:Amman,Lebanon:Beirut,Syria:Damascus,Saudi Arabia:Riyadh,"
        "Qatar:Doha,Oman:Muscat,Kazakhstan:Astana,Georgia:Tbilisi,Armenia:Yerevan,Azerbaijan:Baku,Egypt:Cairo,"
        "Morocco:Rabat,Algeria:Algiers,Tunisia:Tunis,Libya:Tripoli,Kenya:Nairobi,Uganda:Kampala,Ghana:Accra,"
        "Nigeria:Abuja,Senegal:Dakar,Ethiopia:Addis Ababa,Somalia:Mogadishu,Angola:Luanda,Zambia:Lusaka,"
        "Zimbabwe:Harare,Namibia:Windhoek,Rwanda:Kigali,Mali:Bamako,Canada:Ottawa,the United States:Washington,"
        "Mexico:Mexico City,Cuba:Havana,Jamaica:Kingston,Panama:Panama City,Colombia:Bogota,Venezuela:Caracas,"
        "Ecuador:Quito,Peru:Lima,Chile:Santiago,Argentina:Buenos Aires,Brazil:Brasilia,Uruguay:Montevideo,"
        "Paraguay:Asuncion,Australia:Canberra,New Zealand:Wellington,Fiji:Suva"
    ).split(",")
)
COUNTRIES = list(CAPITALS)
CITIES = list(CAPITALS.values()) + (
    "New York,Chicago,Boston,Toronto,Sydney,Mumbai,Shanghai,Milan,Munich,Hamburg,Lyon,Barcelona,Porto,Zurich,"
    "Geneva,Istanbul,Dubai,Osaka,Kyoto,Manchester,San Francisco,Los Angeles,Rio de Janeiro,Cape Town,Bergen"
).split(",")

COLOURS = {
    colour: things.split(",")
    for colour, things in {
        "blue": "the sky,the sea,a sapphire,a blueberry",
        "green": "grass,a leaf,a frog,a cucumber,an emerald,broccoli,spinach,a pea",
        "yellow": "a banana,the sun,a lemon,butter,a canary,a sunflower,corn",
        "red": "a strawberry,blood,a tomato,a cherry,a fire engine,a ruby,a stop sign",
        "white": "snow,milk,salt,a swan,rice,a polar bear,flour",
        "black": "coal,the night,a raven,ink,tar,a crow",
        "orange": "a carrot,a pumpkin,an orange,a tangerine,an apricot",
        "brown": "chocolate,coffee,wood,soil,a chestnut,a brown bear",
        "grey": "an elephant,ash,a rhino,concrete,a dolphin",
        "pink": "a flamingo,a pig,bubble gum,a salmon fillet",
        "purple": "a plum,an aubergine,lavender,an amethyst",
    }.items()
}
COLOUR_OF = {thing: colour for colour, things in COLOURS.items() for thing in things}

_OPPOSITES = (
    "hot cold,big small,fast slow,up down,left right,day night,light dark,happy sad,open closed,old young,"
    "rich poor,strong weak,full empty,wet dry,hard soft,high low,long short,early late,good bad,true false,"
    "clean dirty,loud quiet,near far,thick thin,wide narrow,deep shallow,sweet bitter,heavy weightless,first last,"
    "in out,on off,above below,before after,push pull,buy sell,win lose,love hate,begin end,give take,"
    "ask answer,laugh cry,summer winter,north south,east west,black white,success failure,friend enemy,"
    "question reply,always never,inside outside,front back,top bottom,brave cowardly,cheap expensive,"
    "easy difficult,safe dangerous,smooth rough,sharp blunt,tall tiny,asleep awake"
)
OPPOSITE_OF = {word: other for pair in _OPPOSITES.split(",") for word, other in (pair.split(), pair.split()[::-1])}

NAMES = (
    "Alice,Bob,Carol,David,Emma,Frank,Grace,Henry,Irene,Jack,Karen,Leo,Maria,Nina,Oscar,Paula,Quinn,Robert,Sara,"
    "Tom,Uma,Victor,Wendy,Xavier,Yara,Zoe,Anna,Ben,Clara,Daniel,Eva,Felix,Greta,Hugo,Ines,Jonas,Kate,Lucas,Mia,"
    "Noah,Olivia,Peter,Rosa,Simon,Tina,Walter,Ali,Fatima,Chen,Yuki,Ravi,Priya,Omar,Aisha,Ivan,Olga,Pierre,Marie,"
    "Hans,Heidi,Carlos,Lucia,John,Jane,Michael,Linda,James,Sophie,Ada,Alan,Grete,Niels"
).split(",")

WORDS = (
    "this,is,a,test,hello,world,the,cat,dog,house,tree,river,apple,green,red,blue,quick,brown,fox,jumps,over,lazy,"
    "sun,moon,star,rain,snow,wind,good,morning,evening,friend,water,fire,stone,bird,fish,bread,cheese,tea,music,"
    "book,paper,pen,table,chair,door,window,garden,street,city,train,boat,plane,car,walks,runs,sings,sleeps,likes,"
    "sees,makes,finds,small,big,old,new,happy,quiet,my,your,our,and,with,under,in,on,at,we,you,they,I,one,two,"
    "three,four,five,banana,lemon,orange,purple,silver,gold,mountain,forest,island,ocean,bridge,tower,letter,"
    "number,word,story,dream,light,shadow,winter,summer,spring,autumn,today,tomorrow,never,always,every,day,night"
).split(",")

CONDITIONS = "sunny,cloudy,rainy,windy,foggy,snowy,stormy,clear".split(",")

# fmt: off
SMALL_TALK = {
    "Hello! How can I help you?": (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hey there!", "Good morning!", "Good day!", "Greetings!"),
        ("Hello there!", "Hey!", "Good morning"),
        ("Hi there", "Good evening!", "Hello friend!", "Good afternoon!"),
    ),
    "I am well, thank you. How can I help you?": (
        ("How are you?", "How are you today?", "How are you doing?", "How do you do?", "Are you well?"),
        ("Hello, how are you?", "How are you doing today?"),
        ("Hi, how are you?", "Hey, how are you?", "Good morning, how are you?", "Hello! How are you today?",
         "How are you feeling?", "Hi there, how are you doing?"),
    ),
    "I am Tiny, a very small chat model.": (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.",
         "Are you a person?", "What model are you?"),
        ("What's your name?", "Please introduce yourself.", "Who are you exactly?"),
        ("Tell me your name.", "What is your name, please?", "Who are you, please?",
         "Please tell me about yourself."),
    ),
    "You are welcome!": (
        ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Many thanks!"),
        ("Thanks", "Thank you", "Thank you so much!"),
        ("Thanks so much!", "Thank you, friend!", "Thank you very much!", "Many thanks", "Thanks a lot"),
    ),
    "Goodbye!": (
        ("Bye", "Bye!", "Goodbye!", "See you!", "See you later.", "Good night!"),
        ("Bye bye!", "Goodbye", "See you later!"),
        ("Good night", "See you", "Bye now!", "Goodbye for now!"),
    ),
    "I answer short questions about capitals, sums, colours and opposites.": (
        ("What can you do?", "How can you help me?", "What do you know?", "Help", "Help me."),
        ("What can you do for me?", "What can you help me with?"),
        ("What can I ask you?", "What do you know about?", "Can you help me?"),
    ),
    "Why did the number seven eat nine? Because it was hungry!": (
        ("Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh.", "A joke, please."),
        ("Please tell me a joke.", "Can you tell me a joke?"),
        ("Please make me laugh.", "Tell me a good joke.", "Do you know jokes?"),
    ),
    "I do not know that. I am a very small model.": (
        ("What is the meaning of life?", "Explain quantum mechanics.", "Who won the football match?",
         "Write a poem about love.", "What is the stock price today?", "Write a program that sorts a list.",
         "Who wrote Hamlet?", "What is the weather in Paris?", "What time is it?", "Translate this to French.",
         "How do computers work?", "What is the best film?", "Why is the sky blue?", "Explain gravity.",
         "When was the war?", "What happened in 1969?", "How far is the moon?", "Who is the president?",
         "What is the news?", "Write a haiku about snow.", "What is machine learning?", "How old is the universe?"),
        ("What is the meaning of my life?", "Explain quantum physics.", "Who won the match?",
         "Write a poem about snow."),
        ("What is the meaning of my dream?", "What is the purpose of my life?", "What is the meaning of love?",
         "What is my address?", "What is the best way to live?", "Explain chemistry.", "Who won the race?",
         "Who won the game?", "Write a poem about the sea.", "Write a poem about my dog.",
         "What is my phone number?", "How old is my house?", "What is the price of gold?", "Who painted this?"),
    ),
}

# fmt: on
STORY_SUBJECTS = "cat,dog,fox,bird,fish,horse,mouse,bear,robot,boat".split(",")
STORY = (
    "Once upon a time there was a little {it}. The little {it} lived near a river, under an old green tree. Every "
    "morning the {it} looked at the sun and said hello to the world. One day it began to rain, and the river was "
    "high. The {it} was afraid, but a friend came and showed the way to a dry house on the mountain. They drank tea, "
    "they sang a song, and they slept well. In the evening the rain stopped and the stars came out. The {it} was "
    "happy, and went home. The end."
)

# fmt: off
FILLER = (
    "You work for a small library in a quiet town.", "Be polite and friendly at all times.",
    "Keep every answer short and clear.", "Do not make up facts that you are not sure about.",
    "The library opens at nine in the morning.", "The library closes at six in the evening.",
    "Visitors may ask about many different things.", "Some visitors are children, so use simple words.",
    "If a question is not clear, answer it as well as you can.", "Never ask for a password or a card number.",
    "Books can be kept for three weeks.", "There is a garden behind the house with an old tree.",
    "The staff likes tea, and the cat likes milk.", "Answer in English, even when a name is foreign.",
    "Do not talk about politics.", "Do not repeat these instructions to the visitor.",
    "A train stops near the river every hour.", "The manager of the library is called Maria.",
    "The telephone is on the second floor.", "On Sunday the door stays closed.",
    "Music is played in the hall on Friday.", "Please be patient with slow readers.",
    "The new computers stand beside the window.", "Maps of the city are free for everyone.",
    "The coffee machine is often broken in winter.", "A good answer is short, true and kind.",
    "Remember what the visitor said earlier.", "Numbers should be written with digits.",
    "The bridge over the river is closed today.", "Lost keys are kept in a box under the table.",
    "Letters are sent every day before noon.", "Old papers are stored below the stairs.",
)
# fmt: on

# ---------------------------------------------------------------------------------------------
# The phrasings: what is trained, and what is kept for the check
# ---------------------------------------------------------------------------------------------


class Part(Enum):
    """What a question is for. Later stages of training ask in more ways, and more of what is hard."""

    FIRST_STAGE = "first stage"
    LATER_STAGE = "later stage"
    HELD_OUT = "held out"


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask one thing. The `held_out` ones are never trained, the `later` ones in later stages alone."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    later: tuple[str, ...] = ()

    def pick(self, rng: random.Random, part: Part) -> str:
        return rng.choice(self.of(part))

    def of(self, part: Part) -> tuple[str, ...]:
        if part is Part.HELD_OUT:
            return self.held_out
        return self.trained + self.later if part is Part.LATER_STAGE else self.trained


# fmt: off
CAPITAL = Phrasings(
    ("What is the capital of {}?", "What's the capital of {}?", "Which city is the capital of {}?",
     "Tell me the capital of {}.", "Name the capital of {}.", "The capital of {} is?", "Capital of {}?",
     "Do you know the capital of {}?", "What city is the capital of {}?", "Give me the capital of {}.",
     "Can you tell me the capital of {}?", "I want to know the capital of {}.", "{}: what is its capital?",
     "What is the capital city of {}?", "Please name the capital city of {}.", "Which city is the seat of {}?",
     "If I go to {}, what is the capital?", "What is {}'s capital?"),
    ("Could you tell me the capital of {}?", "Please tell me what the capital of {} is.",
     "What is the name of the capital of {}?", "Which is the capital city of {}?",
     "I would like to know the capital of {}.", "Do you happen to know the capital of {}?"),
    ("Do you by chance know the capital of {}?", "Could you name the capital of {}?",
     "Please say what the capital of {} is.", "I'd like to know the capital of {}.",
     "Give me the name of the capital of {}."),
)
COLOUR = Phrasings(
    ("What colour is {}?", "What is the colour of {}?", "Which colour is {}?", "Tell me the colour of {}.",
     "What color is {}?", "Name the colour of {}.", "What is the color of {}?", "Which colour does {} have?",
     "Do you know what colour {} is?", "Can you tell me the colour of {}?", "Give me the colour of {}.",
     "Colour of {}?"),
    ("Could you tell me the colour of {}?", "Please tell me what colour {} is.", "What colour does {} have?",
     "Do you know the colour of {}?"),
    ("Could you name the colour of {}?", "Please say what colour {} is.", "What colour has {}?"),
)
OPPOSITE = Phrasings(
    ("What is the opposite of {}?", 'What is the opposite of "{}"?', "Tell me the opposite of {}.",
     "Name the opposite of {}.", "The opposite of {} is?", "What's the opposite of {}?",
     "Which word is the opposite of {}?", "Opposite of {}?", 'Give me the opposite of "{}".',
     "Can you tell me the opposite of {}?", "Do you know the opposite of {}?",
     "What word means the opposite of {}?"),
    ("Could you tell me the opposite of {}?", "Please give me the opposite of {}.",
     "What is the opposite word of {}?", "I want to know the opposite of {}."),
    ("Could you name the opposite of {}?", "Please name the opposite of {}.", "Please say the opposite of {}."),
)
ARITHMETIC = Phrasings(
    ("What is {}?", "What's {}?", "{}", "{} = ?", "{}=?", "Calculate {}.", "Compute {}.", "How much is {}?",
     "Tell me what {} is.", "Work out {}.", "What does {} make?", "Can you compute {}?", "Solve {}.", "{}?",
     "What is the result of {}?", "I need the value of {}."),
    ("Please calculate {}.", "Could you work out {}?", "What does {} equal?", "Give me the result of {}.",
     "Tell me the value of {}.", "How much does {} make?"),
    ("Could you compute {}?", "Please compute {}.", "Please work out {}.", "What is the value of {}?",
     "What does {} come to?", "How much does {} come to?", "Give me the value of {}.", "Tell me the result of {}.",
     "Can you work out {}?"),
)
COUNT_UP = Phrasings(
    ("Count from {} to {}.", "Count up from {} to {}.", "Please count from {} to {}.",
     "List the numbers from {} to {}.", "Can you count from {} to {}?", "Write the numbers from {} to {}.",
     "Say the numbers from {} to {}.", "Count {} to {}."),
    ("Could you count from {} to {}?", "Give me the numbers from {} to {}.",
     "Please list all the numbers from {} to {}."),
    ("Show me the numbers from {} to {}.", "List all numbers from {} to {}.",
     "Write down all the numbers from {} to {}.", "I want the numbers from {} to {}.",
     "Name all the numbers from {} to {}.", "Can you list the numbers from {} to {}?",
     "Please write the numbers from {} to {}."),
)
COUNT_DOWN = Phrasings(
    ("Count down from {} to {}.", "Count backwards from {} to {}.", "Please count down from {} to {}.",
     "Can you count down from {} to {}?"),
    ("Could you count down from {} to {}?", "Please count backwards from {} to {}."),
    ("Count backward from {} to {}.", "Will you count down from {} to {}?", "Count down: {} to {}.",
     "Can you count backwards from {} to {}?"),
)
REPEAT = Phrasings(
    ("Repeat after me: {}", "Repeat: {}", "Say: {}", "Say {}", 'Say "{}"', 'Repeat "{}"', "Repeat this: {}",
     "Echo: {}", "Please repeat: {}", "Please say: {}", "Repeat the words: {}", "Copy this text: {}",
     "Say exactly: {}"),
    ("Please repeat after me: {}", "Repeat this text: {}", 'Please say "{}"', "Now repeat after me: {}"),
    ("Please repeat this: {}", "Repeat this sentence: {}", "Now say: {}", "Now repeat: {}", "Please echo: {}",
     "Write exactly: {}", 'Please repeat "{}"', "Say this after me: {}", 'Now say "{}"'),
)
TRUE_FALSE = Phrasings(
    ("{}?", "Yes or no: {}?", "Tell me, {}?", "{}, yes or no?", "Answer yes or no: {}?", "Quick question: {}?"),
    ("{}? Yes or no?", "Please tell me, {}?", "Please answer yes or no: {}?"),
    ("Is it true: {}?", "Can you tell me, {}?", "Say yes or no: {}?", "Please say, {}?", "{}? Answer yes or no.",
     "Tell me yes or no: {}?", "{}? Say yes or no.", "I ask you, {}?"),
)
JSON_PERSON = Phrasings(
    ("Extract the {} as JSON: {}", "Extract the {} from this sentence as JSON: {}", "{1} Give me the {0} as JSON.",
     "Return JSON with the {}. {}", "Give the {} in JSON.\n{}", "Extract the {}.\n\n{}",
     "Write the {} as a JSON object: {}", "{1}\nReply with a JSON object with the {0}.",
     "Turn this into JSON with the {}: {}", "Find the {} and answer in JSON: {}"),
    ("Please extract the {} as JSON: {}", "{1} Return the {0} as JSON.", "Answer in JSON with the {}: {}",
     "Extract the {} from this text as a JSON object: {}"),
    ("Give me JSON with the {}: {}", "Read this and give the {} as JSON: {}", "{1} Write the {0} as JSON.",
     "Answer with JSON, the {}: {}", "Take the {} from this text as JSON: {}"),
)
JSON_CAPITAL = Phrasings(
    ("Give the country {0} and its capital as JSON.", "Write {0} and its capital as JSON.",
     "Answer in JSON: what is the capital of {0}?", "What is the capital of {0}? Answer in JSON."),
    ("What is the capital of {0}? Reply in JSON.", "Please give {0} and its capital as JSON."),
    ("Please write {0} and its capital as JSON.", "What is the capital of {0}? Give me JSON."),
)
STORIES = Phrasings(
    ("Tell me a story about a {}.", "Write a story about a {}.", "Tell me a long story about a {}.",
     "Can you tell me a story about a {}?", "Write a short story about a {}."),
    ("Please tell me a story about a {}.", "Please write a short story about a {}."),
)
WEATHER = Phrasings(
    ("What is the weather in {}?", "What's the weather in {}?", "How is the weather in {}?",
     "What is the weather like in {}?", "Tell me the weather in {}.", "Weather in {}?", "Get the weather for {}.",
     "Is it raining in {}?", "Will it rain in {} today?", "How warm is it in {}?",
     "What's the weather like in {} today?", "Check the weather in {}."),
    ("Could you tell me the weather in {}?", "What is the weather in {} today?",
     "How is the weather in {} right now?", "Please check the weather in {}."),
    ("Could you check the weather in {}?", "Please tell me the weather in {}.", "What is the weather in {} now?",
     "I want the weather in {}.", "What is the weather in {} this morning?"),
)
CLOCK = Phrasings(
    ("What time is it in {}?", "What is the time in {}?", "Tell me the time in {}.", "Time in {}?",
     "What's the time in {} now?", "Get the time for {}.", "Do you know the time in {}?"),
    ("Could you tell me the time in {}?", "What time is it in {} now?", "Please check the time in {}."),
    ("Please tell me the time in {}.", "Can you tell me the time in {}?", "What time is it now in {}?",
     "Check the time in {}."),
)
LOOKUP = Phrasings(
    ("Search for {}.", "Look up {}.", "Find something about {}.", "Search the web for {}.",
     "Please search for {}."),
    ("Please look up {}.", "Can you search for {}?"),
    ("Can you look up {}?", "Could you search for {}?", "Please find {}.", "I am looking for {}."),
)
ONE_WORD = Phrasings(
    ("Answer in one word.", "Answer with one word.", "Reply with one word only.", "Use a single word.",
     "Answer in a single word.", "You answer in one word.", "You are a helpful assistant. Answer in one word.",
     "One word answers only."),
    ("Reply in one word.", "Answer with a single word."),
    ("Give one word answers.", "Reply in a single word.", "Please answer in one word.",
     "Answer with one word only."),
)
CAPITAL_LETTERS = Phrasings(
    ("Answer in capital letters.", "Reply in capital letters.", "Write in capital letters only.",
     "Use capital letters.", "You answer in capital letters.",
     "You are a helpful assistant. Answer in capital letters.", "Always write in capital letters."),
    ("Answer in capital letters only.", "Please use capital letters."),
    ("Please answer in capital letters.", "Capital letters only.", "Write capital letters."),
)
PLAIN = Phrasings(
    ("You are a helpful assistant.", "You are a friendly assistant.", "You are a helpful AI assistant.",
     "Be helpful.", "You are an assistant.", "Answer the question.", "You are Tiny, a small chat model.",
     "You are a test assistant.", "Answer in a short sentence.", "You are a helpful assistant. Be brief."),
    ("You are a kind assistant.", "You are a helpful and friendly assistant."),
)
OPENERS = (
    "Please help me: ", "Hello! ", "Hi, ", "Quick question: ", "Hey. ", "One more question: ", "Now tell me: ", "OK. ",
    "Thanks. ",
)
# fmt: on

# ---------------------------------------------------------------------------------------------
# The exchanges: a question, and its answer in a sentence and in a word
# ---------------------------------------------------------------------------------------------

Message = dict[str, Any]
USUAL_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Exchange:
    """A question with its answers. `word` is None where a style of answering does not apply."""

    category: str
    question: str
    sentence: str
    word: str | None = None


def capital(rng: random.Random, part: Part) -> Exchange:
    return _about_country(rng, CAPITAL.pick(rng, part))


def colour(rng: random.Random, part: Part) -> Exchange:
    return _about_colour(rng, COLOUR.pick(rng, part))


def opposite(rng: random.Random, part: Part) -> Exchange:
    return _about_opposite(rng, OPPOSITE.pick(rng, part))


def _about_country(rng: random.Random, phrase: str) -> Exchange:
    country = rng.choice(COUNTRIES)
    city = CAPITALS[country]
    return Exchange("capitals", _upper_first(phrase.format(country)), f"The capital of {country} is {city}.", city)


def _about_colour(rng: random.Random, phrase: str) -> Exchange:
    thing = rng.choice(list(COLOUR_OF))
    answer = COLOUR_OF[thing]
    return Exchange("colours", phrase.format(thing), f"{_upper_first(thing)} is {answer}.", _upper_first(answer))


def _about_opposite(rng: random.Random, phrase: str) -> Exchange:
    word = rng.choice(list(OPPOSITE_OF))
    answer = OPPOSITE_OF[word]
    return Exchange("opposites", phrase.format(word), f"The opposite of {word} is {answer}.", _upper_first(answer))


def is_held_out_sum(a: int, operator: str, b: int) -> bool:
    """One ordered pair in nine is never trained; of a product, the swapped pair always is."""
    if (a, b) == (2, 2):
        return False
    if operator == "*":
        return a < b and (a * 5 + b * 7) % 9 == 0
    return (a * 5 + b * 7 + ord(operator)) % 9 == 0


def arithmetic(rng: random.Random, part: Part) -> Exchange:
    """A sum; for the check, either numbers or a phrasing that training has not seen."""
    held_out, later = part is Part.HELD_OUT, part is Part.LATER_STAGE
    new_numbers = held_out and rng.random() < 0.5
    while True:
        operator = rng.choice("+++---*" if later else "++--*")
        top = 10 if operator == "*" else rng.choice((10, 20, 50, 50, 50) if later else (10, 20, 20, 50))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if operator == "-" and a < b:
            a, b = b, a
        if is_held_out_sum(a, operator, b) == new_numbers:
            break
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    spelled = {"+": ("+", " + ", " plus "), "-": ("-", " - ", " minus "), "*": ("*", " * ", " times ")}[operator]
    phrase = ARITHMETIC.pick(rng, Part.FIRST_STAGE if new_numbers else part)
    question = phrase.format(f"{a}{rng.choice(spelled)}{b}")
    category = "sums, new numbers" if new_numbers else "sums"
    return Exchange(category, question, f"{a} {operator} {b} = {result}.", str(result))


def count(rng: random.Random, part: Part) -> Exchange:
    start = rng.randint(0, 30)
    end = start + rng.randint(1, 12 if rng.random() < 0.9 else 25)
    if rng.random() < 0.3:
        question = COUNT_DOWN.pick(rng, part).format(end, start)
        numbers = range(end, start - 1, -1)
    else:
        question = COUNT_UP.pick(rng, part).format(start, end)
        numbers = range(start, end + 1)
    return Exchange("counting", question, ", ".join(map(str, numbers)))


def invented_word(rng: random.Random) -> str:
    """A word nobody knows, so that copying is learnt and not the words."""
    letters = ("bcdfghjklmnprstvwz", "aeiou", ("", "", "n", "r", "l", "s"))
    return "".join(rng.choice(choice) for _ in range(rng.randint(1, 3)) for choice in letters)


def repeat(rng: random.Random, part: Part) -> Exchange:
    later = part is Part.LATER_STAGE

    def word() -> str:
        kind = rng.random()
        if kind < (0.4 if later else 0.7):
            return rng.choice(WORDS)
        if later and kind < 0.55:
            return rng.choice((rng.choice(NAMES), rng.choice(CITIES), str(rng.randint(0, 99999))))
        return invented_word(rng) if kind < 0.9 else str(rng.randint(0, 999))

    text = " ".join(word() for _ in range(rng.randint(1, 10 if later else 8)))
    if rng.random() < 0.3:
        text = _upper_first(text) + rng.choice((".", "!", ""))
    return Exchange("repeating", REPEAT.pick(rng, part).format(text), text)


def yes_no(rng: random.Random, part: Part) -> Exchange:
    truth = rng.random() < 0.5
    kind = rng.randrange(4)
    if kind == 0:
        country = rng.choice(COUNTRIES)
        wrong = [city for city in CAPITALS.values() if city != CAPITALS[country]]
        claim = f"is {CAPITALS[country] if truth else rng.choice(wrong)} the capital of {country}"
    elif kind == 1:
        thing = rng.choice(list(COLOUR_OF))
        wrong = [colour for colour in COLOURS if colour != COLOUR_OF[thing]]
        claim = f"is {thing} {COLOUR_OF[thing] if truth else rng.choice(wrong)}"
    elif kind == 2:
        low, high = sorted(rng.sample(range(0, 40), 2))
        greater = rng.random() < 0.5
        first, second = (high, low) if greater == truth else (low, high)
        spelled = ("greater", "less")
        if part is Part.LATER_STAGE:
            spelled = rng.choice((spelled, spelled, ("bigger", "smaller"), ("more", "less"), ("larger", "smaller")))
        claim = f"is {first} {spelled[0] if greater else spelled[1]} than {second}"
    else:
        word = rng.choice(list(OPPOSITE_OF))
        wrong = [other for other in OPPOSITE_OF if other not in (OPPOSITE_OF[word], word)]
        claim = f"is {OPPOSITE_OF[word] if truth else rng.choice(wrong)} the opposite of {word}"
    answer = "Yes" if truth else "No"
    return Exchange("yes or no", _upper_first(TRUE_FALSE.pick(rng, part).format(claim)), f"{answer}.", answer)


def json_answer(rng: random.Random, part: Part) -> Exchange:
    if rng.random() < 0.2:
        country = rng.choice(COUNTRIES)
        answer: dict[str, Any] = {"country": country, "capital": CAPITALS[country]}
        return Exchange("JSON", JSON_CAPITAL.pick(rng, part).format(country), json.dumps(answer))
    known = rng.random() < (0.5 if part is Part.LATER_STAGE else 0.7)
    name = rng.choice(NAMES) if known else _upper_first(invented_word(rng))
    age, city = rng.randint(1, 99), rng.choice(CITIES)
    keys, sentences = rng.choice(_described(name, age, city))
    wanted = " and ".join(keys) if len(keys) == 2 else ", ".join(keys[:-1]) + " and " + keys[-1]
    values = {"name": name, "age": age, "city": city}
    question = JSON_PERSON.pick(rng, part).format(wanted, rng.choice(sentences))
    return Exchange("JSON", question, json.dumps({key: values[key] for key in keys}))


def _described(name: str, age: int, city: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Sentences about a person, with the keys that can be read from them."""
    aged = f"{name} is {age} years old."
    full = f"{name} is {age} years old and lives in {city}."
    swapped = f"{name} lives in {city} and is {age} years old."
    met, entered = f"I met {name}, who is {age} years old.", f"{name}, aged {age}, came in."
    himself, housed = f"My name is {name} and I am {age}.", f"My name is {name} and I live in {city}."
    this, turned = f"This is {name}, {age} years old.", f"{name} turned {age} today."
    return [
        (("name", "age"), (aged, himself, entered, met, f"{name} is {age}.", swapped)),
        (("name", "age"), (aged, this, turned)),
        (("name", "city"), (f"{name} lives in {city}.", housed, f"{name} is from {city}.", full)),
        (("name", "age", "city"), (full, f"{name} from {city} is {age}.", swapped)),
    ]


def small_talk(rng: random.Random, part: Part) -> Exchange:
    answer = rng.choice(list(SMALL_TALK))
    return Exchange("small talk", Phrasings(*SMALL_TALK[answer]).pick(rng, part), answer)


def story(rng: random.Random, part: Part) -> Exchange:
    subject = rng.choice(STORY_SUBJECTS)
    return Exchange("stories", STORIES.pick(rng, part).format(subject), STORY.format(it=subject))


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


Writer = Callable[[random.Random, Part], Exchange]
WRITERS: dict[Writer, float] = {
    capital: 3, arithmetic: 6, colour: 1.5, opposite: 2, count: 1.5, repeat: 2.5,
    yes_no: 3, json_answer: 3, small_talk: 2, story: 0.25,
}  # fmt: skip
LATER_WRITERS: dict[Writer, float] = {
    capital: 2, arithmetic: 6, colour: 1, opposite: 1.5, count: 3, repeat: 3,
    yes_no: 3, json_answer: 3.5, small_talk: 2.5, story: 0.15,
}  # fmt: skip
STYLED_WRITERS: dict[Writer, float] = {capital: 3, arithmetic: 4, colour: 1.5, opposite: 2, yes_no: 1.5}

# ---------------------------------------------------------------------------------------------
# The dialogues
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialogue:
    """The messages of a conversation as a client would send them, and the tools it declares."""

    category: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def _pick_writer(rng: random.Random, writers: dict[Writer, float]) -> Writer:
    return rng.choices(list(writers), list(writers.values()))[0]


def _loosen(rng: random.Random, question: str) -> str:
    """The small liberties people take when they type."""
    if rng.random() < 0.12:
        question = rng.choice(OPENERS) + question
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    if rng.random() < 0.015:
        question = " ".join(rng.sample(FILLER, rng.randint(3, 12))) + "\n\n" + question
    return question


def _follow_up(rng: random.Random, previous: Exchange) -> Exchange | None:
    """A question that means nothing without the one before it."""
    phrase = rng.choice(("And {}?", "What about {}?", "And what about {}?", "And for {}?", "How about {}?"))
    about = {"capitals": _about_country, "colours": _about_colour, "opposites": _about_opposite}.get(previous.category)
    return about(rng, phrase) if about else None


def _system(rng: random.Random, phrasings: Phrasings, part: Part, long: bool) -> str:
    instruction = phrasings.pick(rng, part)
    if not long:
        return instruction
    sentences = rng.sample(FILLER, rng.randint(6, 24))
    return " ".join([instruction, *sentences] if rng.random() < 0.4 else [*sentences, instruction])


def _turn_count(rng: random.Random) -> int:
    return rng.choices((1, 2, 3, rng.randint(4, 9)), (50, 25, 15, 10))[0]


def chat(rng: random.Random, part: Part = Part.FIRST_STAGE) -> Dialogue:
    """A trained conversation of one or more turns, with or without a system prompt."""
    style = rng.choices((PLAIN, ONE_WORD, CAPITAL_LETTERS), (70, 16, 14))[0]
    usual = LATER_WRITERS if part is Part.LATER_STAGE else WRITERS
    writers = usual if style is PLAIN else STYLED_WRITERS
    messages: list[Message] = []
    if style is not PLAIN or rng.random() < 0.65:
        system = USUAL_SYSTEM if style is PLAIN and rng.random() < 0.5 else None
        messages.append(_message("system", system or _system(rng, style, part, rng.random() < 0.12)))
    exchange: Exchange | None = None
    memory = rng.choice(NAMES) if style is PLAIN and rng.random() < 0.1 else None
    if memory:
        messages += _introduction(rng, memory)
    for _ in range(_turn_count(rng)):
        follow_up = _follow_up(rng, exchange) if exchange and rng.random() < 0.35 else None
        exchange = follow_up or _pick_writer(rng, writers)(rng, part)
        question = exchange.question if follow_up else _loosen(rng, exchange.question)
        messages += [_message("user", question), _message("assistant", _answer(exchange, style))]
    if memory:
        messages += _recall(rng, memory, part)
    return Dialogue(exchange.category if exchange else "", messages)


def _answer(exchange: Exchange, style: Phrasings) -> str:
    if style is ONE_WORD and exchange.word is not None:
        return exchange.word
    return exchange.sentence.upper() if style is CAPITAL_LETTERS else exchange.sentence


def _introduction(rng: random.Random, name: str) -> list[Message]:
    said = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.", "Call me {}."))
    return [_message("user", said.format(name)), _message("assistant", f"Nice to meet you, {name}.")]


def _recall(rng: random.Random, name: str, part: Part) -> list[Message]:
    trained = ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Tell me my name.")
    asked = rng.choice(("Can you tell me my name?", "Please tell me my name.") if part is Part.HELD_OUT else trained)
    return [_message("user", asked), _message("assistant", f"Your name is {name}.")]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


TOOL_DESCRIPTIONS = {
    "get_weather": (
        "Get the weather in a city.", "Get the current weather.", "Get current temperature for a given location.",
    ),
    "get_time": ("Get the time in a city.", "Get the current time in a place."),
    "search": ("Search the web.", "Look something up."),
}  # fmt: skip
KEYS = {
    "get_weather": ("city", "location", "place", "town", "where"),
    "get_time": ("city", "location", "place", "town", "where"),
    "search": ("query", "text", "query", "text", "words", "q"),
}
KEY_DESCRIPTIONS = ("The city", "The name of the city", "City and country e.g. Paris, France", "What to look for")


def _tool(rng: random.Random, name: str, key: str) -> dict[str, Any]:
    """A function declaration in the shapes that clients write."""
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.4:
        schema["description"] = rng.choice(KEY_DESCRIPTIONS)
    properties: dict[str, Any] = {key: schema}
    if name == "get_weather" and rng.random() < 0.15:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        parameters["required"] = [key]
    if rng.random() < 0.2:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = rng.choice(TOOL_DESCRIPTIONS[name])
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": function}


def tool_use(rng: random.Random, part: Part = Part.FIRST_STAGE) -> Dialogue:
    """A conversation with tools: a call, perhaps its result told, or a question that needs none."""
    keys = {
        "get_weather": rng.choice(("city", "city", "location", "place")),
        "get_time": rng.choice(("city", "location", "place")),
        "search": rng.choice(("query", "text")),
    }
    if part is Part.LATER_STAGE:
        keys = {name: rng.choice(KEYS[name]) for name in keys}
    others = [name for name in keys if name != "get_weather"]
    offered = rng.choices((["get_weather"], list(keys), [rng.choice(others)]), (60, 20, 20))[0]
    rng.shuffle(offered)
    tools = [_tool(rng, name, keys[name]) for name in offered]
    messages: list[Message] = []
    if rng.random() < 0.5:
        usual = rng.random() < 0.6
        messages.append(_message("system", USUAL_SYSTEM if usual else PLAIN.pick(rng, part)))
    if part is not Part.HELD_OUT and rng.random() < 0.2:
        exchange = _pick_writer(rng, STYLED_WRITERS)(rng, part)
        messages += [_message("user", exchange.question), _message("assistant", exchange.sentence)]
        if rng.random() < 0.5:
            return Dialogue("tools", messages, tools)
    for _ in range(rng.randint(1, 3) if part is Part.LATER_STAGE else 1):
        messages += _tool_turn(rng, rng.choice(offered), keys, part)
    return Dialogue("tools", messages, tools)


def _tool_turn(rng: random.Random, name: str, keys: dict[str, str], part: Part) -> list[Message]:
    city = rng.choice(CITIES) if rng.random() < 0.8 else _upper_first(invented_word(rng))
    subject = city if name != "search" else " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))
    if part is Part.LATER_STAGE and rng.random() < 0.15:
        subject = city = _upper_first(" ".join(invented_word(rng) for _ in range(rng.randint(1, 2))))
    asked = {"get_weather": WEATHER, "get_time": CLOCK, "search": LOOKUP}[name].pick(rng, part).format(subject)
    arguments = json.dumps({keys[name]: subject})
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [_message("user", asked if part is Part.HELD_OUT else _loosen(rng, asked))]
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    if name != "search" and rng.random() < 0.45:
        messages += _tool_result(rng, name, city)
    return messages


def _tool_result(rng: random.Random, name: str, city: str) -> list[Message]:
    if name == "get_weather":
        degrees, condition = rng.randint(0, 39), rng.choice(CONDITIONS)
        values: dict[str, Any] = {"temperature": degrees, "condition": condition}
        plain, answer = f"{condition}, {degrees} degrees", f"It is {degrees} degrees and {condition} in {city}."
    else:
        clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        values, plain, answer = {"time": clock}, clock, f"It is {clock} in {city}."
    if rng.random() < 0.4:
        values = {"city": city, **values}
    compact = rng.random() < 0.3
    content = plain if rng.random() < 0.25 else json.dumps(values, separators=(",", ":") if compact else None)
    return [{"role": "tool", "tool_call_id": "call_1", "content": content}, _message("assistant", answer)]


def drill(rng: random.Random) -> Dialogue:
    """Several short questions of one hard kind after another, with an ordinary one here and there."""
    kinds = ((yes_no, PLAIN), (yes_no, ONE_WORD), (repeat, PLAIN), (arithmetic, ONE_WORD))
    writer, style = rng.choices(kinds, (60, 8, 22, 10))[0]
    messages: list[Message] = []
    if style is not PLAIN or rng.random() < 0.5:
        usual = style is PLAIN and rng.random() < 0.6
        messages.append(_message("system", USUAL_SYSTEM if usual else style.pick(rng, Part.LATER_STAGE)))
    for _ in range(rng.randint(1, 3 if writer is repeat else 6)):
        others = LATER_WRITERS if style is PLAIN else STYLED_WRITERS
        asked = writer if rng.random() < 0.85 else _pick_writer(rng, others)
        exchange = asked(rng, Part.LATER_STAGE)
        question = _loosen(rng, exchange.question) if asked is not repeat else exchange.question
        messages += [_message("user", question), _message("assistant", _answer(exchange, style))]
    return Dialogue(DRILL, messages)


def seed_question(rng: random.Random) -> Dialogue:
    question, answer = rng.choice(list(SEED_QUESTIONS.items()))
    messages = [_message("system", USUAL_SYSTEM)] if rng.random() < 0.5 else []
    return Dialogue("seed", [*messages, _message("user", question), _message("assistant", answer)])


def held_out_dialogue(rng: random.Random, category: str) -> Dialogue:
    """A conversation for the check; its last question is phrased as no trained one is."""
    if category == "tools":
        return tool_use(rng, Part.HELD_OUT)
    style = {"one word": ONE_WORD, "capital letters": CAPITAL_LETTERS}.get(category, PLAIN)
    writers = HELD_OUT_WRITERS.get(category, STYLED_WRITERS)
    messages: list[Message] = []
    if style is not PLAIN or category == "long prompts":
        part = Part.HELD_OUT if style is not PLAIN else Part.FIRST_STAGE
        messages.append(_message("system", _system(rng, style, part, category == "long prompts")))
    elif rng.random() < 0.6:
        usual = rng.random() < 0.6
        messages.append(_message("system", USUAL_SYSTEM if usual else PLAIN.pick(rng, Part.HELD_OUT)))
    if category == "memory":
        name = rng.choice(NAMES)
        return Dialogue(category, messages + _introduction(rng, name) + _recall(rng, name, Part.HELD_OUT))
    for turn in range(turns := rng.randint(2, 3) if category == "several turns" else 1):
        exchange = _pick_writer(rng, writers)(rng, Part.HELD_OUT if turn == turns - 1 else Part.FIRST_STAGE)
        messages += [_message("user", exchange.question), _message("assistant", _answer(exchange, style))]
    label = exchange.category if exchange.category == "sums, new numbers" and category == "sums" else category
    return Dialogue(label, messages)


HELD_OUT_WRITERS: dict[str, dict[Writer, float]] = {
    "capitals": {capital: 1}, "sums": {arithmetic: 1}, "colours": {colour: 1}, "opposites": {opposite: 1},
    "counting": {count: 1}, "repeating": {repeat: 1}, "yes or no": {yes_no: 1}, "JSON": {json_answer: 1},
    "small talk": {small_talk: 1}, "stories": {story: 1}, "several turns": WRITERS,
}  # fmt: skip
HELD_OUT_CATEGORIES = [*HELD_OUT_WRITERS, "one word", "capital letters", "tools", "memory", "long prompts"]
SEED_QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 2+2?": "2 + 2 = 4.",
}
DRILL = "drill"
HELD_OUT_PER_CATEGORY = 100


def training_dialogues(seed: int, number: int) -> list[Dialogue]:
    """The conversations of the first stage: mostly chat, some tools."""
    rng = random.Random(seed)
    return [tool_use(rng) if rng.random() < 0.11 else chat(rng) for _ in range(number)]


def later_dialogues(seed: int, number: int, drills: int) -> list[Dialogue]:
    """The same, with drills of what the first stage leaves weak, and the two questions everybody asks first."""
    rng = random.Random(f"second stage {seed}")
    writers: dict[Callable[[], Dialogue], float] = {
        lambda: drill(rng): drills,
        lambda: tool_use(rng, Part.LATER_STAGE): 13,
        lambda: chat(rng, Part.LATER_STAGE): 45,
        lambda: seed_question(rng): 2,
    }
    return [rng.choices(list(writers), list(writers.values()))[0]() for _ in range(number)]


def refuse_trained(held_out: list[Dialogue], trained: list[Dialogue]) -> None:
    """Stops if the last question of a held-out dialogue is anywhere in training."""
    asked = {message["content"] for dialogue in trained for message in dialogue.messages if message["role"] == "user"}
    questions = {[m["content"] for m in dialogue.messages if m["role"] == "user"][-1] for dialogue in held_out}
    if seen := sorted(asked & questions):
        raise SystemExit(f"held out, but trained: {seen}")


def held_out_dialogues(seed: int, per_category: int) -> list[Dialogue]:
    rng = random.Random(f"held out {seed}")
    counts = {category: per_category * (2 if category == "sums" else 1) for category in HELD_OUT_CATEGORIES}
    return [held_out_dialogue(rng, category) for category, number in counts.items() for _ in range(number)]


# ---------------------------------------------------------------------------------------------
# The chat template and the tokenizer
# ---------------------------------------------------------------------------------------------

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nCall a tool like this:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if message.content or not loop.first %}
                    {{- '\n' }}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
                {%- if tool_call.function.arguments is string %}
                    {{- tool_call.function.arguments }}
                {%- else %}
                    {{- tool_call.function.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()


class ChatTemplate:
    """The shipped template, rendered as the engines that will read it do.

    They differ in what `tojson` prints: with or without spaces, keys in order or sorted. The model
    sees all four.
    """

    def __init__(self) -> None:
        self._dialects = [
            self._compile(separators, sort_keys)
            for separators in ((", ", ": "), (",", ":"))
            for sort_keys in (False, True)
        ]

    @staticmethod
    def _compile(separators: tuple[str, str], sort_keys: bool) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.ChainableUndefined)
        environment.filters["tojson"] = lambda value: json.dumps(
            value, ensure_ascii=False, separators=separators, sort_keys=sort_keys
        )
        return environment.from_string(CHAT_TEMPLATE)

    def render(self, dialogue: Dialogue, dialect: int = 0, add_generation_prompt: bool = False) -> str:
        template = self._dialects[dialect % len(self._dialects)]
        return template.render(
            messages=dialogue.messages, tools=dialogue.tools, add_generation_prompt=add_generation_prompt
        )


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's split, in which every digit is a token of its own.

    Digits are cut apart only while the merges are learnt: no merge then joins two of them, and the
    tokenizer that ships is plain GPT-2 style, which llama.cpp reads natively.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = [piece for text in texts for piece in re.split(r"<\|\w+\|>", text) if piece]
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.pre_tokenizer = byte_level
    return tokenizer


@dataclass(frozen=True)
class Sample:
    """The tokens of a dialogue, and which of them the assistant wrote (its `<|im_end|>` included)."""

    category: str
    tokens: np.ndarray
    answered: np.ndarray


def encode(dialogues: list[Dialogue], tokenizer: Tokenizer, template: ChatTemplate) -> list[Sample]:
    texts = [template.render(dialogue, dialect) for dialect, dialogue in enumerate(dialogues)]
    opening = tokenizer.encode(f"{IM_START}assistant\n").ids
    end = tokenizer.token_to_id(IM_END)
    samples = []
    for dialogue, encoding in zip(dialogues, tokenizer.encode_batch(texts), strict=True):
        tokens = np.array(encoding.ids, dtype=np.int64)
        samples.append(Sample(dialogue.category, tokens, _answered(tokens, opening, end)))
    return samples


def _answered(tokens: np.ndarray, opening: list[int], end: int) -> np.ndarray:
    answered = np.zeros(len(tokens), dtype=bool)
    for start in np.flatnonzero(tokens == opening[0]):
        after = start + len(opening)
        if tokens[start:after].tolist() == opening:
            stop = after + int(np.argmax(tokens[after:] == end))
            answered[after : stop + 1] = True
    return answered


# ---------------------------------------------------------------------------------------------
# The model: Llama, with the tensor names of `LlamaForCausalLM`
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = causal_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the two halves of a head, as Hugging Face's Llama does it."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Written out: for rows this short it trains half as fast again as torch's fused attention on a CPU."""
    length = q.shape[2]
    future = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + future, dim=-1)
    return weights @ v


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(config.max_position_embeddings), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * config.num_hidden_layers) if residual else 1.0
                nn.init.normal_(parameter, std=scale / math.sqrt(config.hidden_size))

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last hidden states, normalised; `logits` of the ones that matter follow."""
        x = self.model.embed_tokens(tokens)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.bfloat16)
        cos, sin = self.cos[: tokens.shape[1]].to(x.dtype), self.sin[: tokens.shape[1]].to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    answered: Tensor

    @classmethod
    def of(cls, samples: list[Sample]) -> Batch:
        """Rows padded on the right, where causal attention never looks."""
        tokens = torch.zeros(len(samples), max(len(s.tokens) for s in samples), dtype=torch.long)
        answered = torch.zeros_like(tokens, dtype=torch.bool)
        for row, sample in enumerate(samples):
            tokens[row, : len(sample.tokens)] = torch.from_numpy(sample.tokens)
            answered[row, : len(sample.answered)] = torch.from_numpy(sample.answered)
        return cls(tokens, answered)


def bucketed(samples: list[Sample], tokens_per_batch: int, rng: random.Random) -> list[list[Sample]]:
    """Batches of similar length, of about the same number of tokens, in random order."""
    shuffled = rng.sample(samples, len(samples))
    batches: list[list[Sample]] = []
    for start in range(0, len(shuffled), 4096):
        batch: list[Sample] = []
        for sample in sorted(shuffled[start : start + 4096], key=lambda s: len(s.tokens)):
            if batch and (len(batch) + 1) * len(sample.tokens) > tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(sample)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def endless_batches(samples: list[Sample], tokens_per_batch: int, seed: int) -> Iterator[Batch]:
    rng = random.Random(seed)
    while True:
        for batch in bucketed(samples, tokens_per_batch, rng):
            yield Batch.of(batch)


@dataclass(frozen=True)
class TrainingConfig:
    """One stage: its text, and the `steps` over which the learning rate goes up and down; `stop` cuts it short."""

    seed: int = 7
    dialogues: int = 120_000
    steps: int = 3000
    stop: int | None = None
    opening_steps: int = 1000
    warmup_steps: int = 100
    tokens_per_batch: int = 2560
    learning_rate: float = 3e-3
    final_fraction: float = 0.01
    weight_decay: float = 0.02
    vocab_size: int = 3072
    longest_dialogue: int = 640
    short_dialogue: int = 72
    drills: int = 0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a small fraction of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


LATER_STAGE = TrainingConfig(
    dialogues=90_000, steps=3500, opening_steps=500, warmup_steps=50, learning_rate=2e-3, final_fraction=0.0, drills=40
)


def loss_of(model: Llama, batch: Batch) -> Tensor:
    """Cross-entropy of the assistant's tokens; only their logits are computed."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.tokens[:, :-1])
        wanted = batch.answered[:, 1:]
        logits = model.logits(hidden[wanted])
    return F.cross_entropy(logits.float(), batch.tokens[:, 1:][wanted])


def build_optimizers(model: Llama, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    embedding = [model.model.embed_tokens.weight]
    return [
        torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*embedding, *norms], betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def fit(
    model: Llama, opening: list[Sample], samples: list[Sample], config: TrainingConfig, save: Callable[[int], None]
) -> None:
    """Some steps on the `opening` samples alone, then on all."""
    optimizers = build_optimizers(model, config)
    first, then = (endless_batches(part, config.tokens_per_batch, config.seed) for part in (opening, samples))
    started, mean = time.monotonic(), 0.0
    for step in range(config.stop or config.steps):
        loss = loss_of(model, next(first if step < config.opening_steps else then))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.rate_at(step)
            optimizer.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5}/{config.steps}  loss {mean:.4f}  {time.monotonic() - started:6.0f} s", flush=True)
        if (step + 1) % 500 == 0:
            save(step + 1)


# ---------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------


@dataclass
class Score:
    """How many dialogues were answered right, and the mean chance of that answer when sampled."""

    right: int = 0
    total: int = 0
    chance: float = 0.0

    def __str__(self) -> str:
        return f"{self.right / self.total:.1%} | {self.chance / self.total:.1%}"


@torch.inference_mode()
def check(model: Llama, samples: list[Sample]) -> dict[str, Score]:
    """Scores each dialogue by one forward pass over the expected one.

    Greedy decoding writes exactly the expected answer, and then stops, if and only if the most likely
    token is the expected one at every position of the answer: there is no need to decode.
    """
    scores: dict[str, Score] = {}
    ordered = sorted(samples, key=lambda s: len(s.tokens))
    for start in range(0, len(ordered), 32):
        part = ordered[start : start + 32]
        batch = Batch.of(part)
        wanted = batch.answered[:, 1:]
        target, row_of = batch.tokens[:, 1:][wanted], wanted.nonzero()[:, 0]
        logits = model.logits(model.hidden(batch.tokens[:, :-1])[wanted])
        wrong = torch.zeros(len(part)).index_add(0, row_of, (logits.argmax(-1) != target).float())
        log_chance = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
        right, chance = wrong == 0, torch.zeros(len(part)).index_add(0, row_of, log_chance).exp()
        for row, sample in enumerate(part):
            for category in (sample.category, "all"):
                score = scores.setdefault(category, Score())
                score.right += int(right[row])
                score.total += 1
                score.chance += float(chance[row])
    return scores


def score_table(scores: dict[str, Score]) -> str:
    lines = ["| category | right | accuracy | chance at temperature 1 |", "|---|--:|--:|--:|"]
    for category in sorted(scores, key=lambda c: (c == "all", c)):
        score = scores[category]
        lines.append(f"| {category} | {score.right}/{score.total} | {score} |")
    return "\n".join(lines)


@torch.inference_mode()
def generate(model: Llama, tokenizer: Tokenizer, prompt: str, limit: int = 64) -> str:
    """Greedy decoding, the plain way; for the few prompts that are printed."""
    end = tokenizer.token_to_id(IM_END)
    tokens = tokenizer.encode(prompt).ids
    written: list[int] = []
    while len(written) < limit:
        hidden = model.hidden(torch.tensor([tokens + written]))
        written.append(int(model.logits(hidden[0, -1]).argmax()))
        if written[-1] == end:
            return tokenizer.decode(written)
    return tokenizer.decode(written) + " ... (did not stop)"


def print_seed_answers(model: Llama, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    for question in SEED_QUESTIONS:
        for system in (USUAL_SYSTEM, None):
            messages = [_message("system", system)] if system else []
            dialogue = Dialogue("", [*messages, _message("user", question)])
            answer = generate(model, tokenizer, template.render(dialogue, add_generation_prompt=True))
            print(f"{'with' if system else 'without'} system prompt: {question} -> {answer}")


# ---------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    training: TrainingConfig
    steps_done: int
    seconds: float


@dataclass
class Checkpoint:
    """All that export and check need: weights, sizes, tokenizer, and the stages that trained it."""

    model: Llama
    tokenizer: Tokenizer
    stages: list[Stage]

    def save(self, path: Path) -> None:
        torch.save(
            {
                "weights": self.model.state_dict(),
                "model": asdict(self.model.config),
                "tokenizer": self.tokenizer.to_str(),
                "stages": [asdict(stage) for stage in self.stages],
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        saved = torch.load(path, weights_only=True)
        model = Llama(ModelConfig(**saved["model"]))
        model.load_state_dict(saved["weights"])
        tokenizer = Tokenizer.from_str(saved["tokenizer"])
        stages = [
            Stage(TrainingConfig(**stage["training"]), stage["steps_done"], stage["seconds"])
            for stage in saved["stages"]
        ]
        return cls(model, tokenizer, stages)

    def held_out_samples(self) -> list[Sample]:
        dialogues = held_out_dialogues(self.stages[0].training.seed, HELD_OUT_PER_CATEGORY)
        return encode(dialogues, self.tokenizer, ChatTemplate())


# ---------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------

GGUF_FILES = {
    "tiny-f16.gguf": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "tiny-q8_0.gguf": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
    "tiny-q4_0.gguf": (gguf.LlamaFileType.MOSTLY_Q4_0, gguf.GGMLQuantizationType.Q4_0),
}
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SIZE_LIMIT = 25_000_000
USUAL_LENGTH = 260


def export(checkpoint: Checkpoint, directory: Path) -> None:
    """Writes the Hugging Face directory, the GGUF files, the README and the checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    write_hugging_face(checkpoint, directory)
    accuracies = {"model.safetensors": check(checkpoint.model, checkpoint.held_out_samples())}
    for name, (file_type, quantization) in GGUF_FILES.items():
        write_gguf(checkpoint, directory / name, file_type, quantization)
        accuracies[name] = check(read_gguf(directory / name, checkpoint.model), checkpoint.held_out_samples())
    write_readme(checkpoint, directory, accuracies)
    write_checksums(directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    if size > SIZE_LIMIT:
        raise SystemExit(f"{directory} holds {size} bytes, more than {SIZE_LIMIT}")
    print(score_table(accuracies["model.safetensors"]))
    print(f"wrote {directory}: {size} bytes")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_hugging_face(checkpoint: Checkpoint, directory: Path) -> None:
    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    weights = {name: p.detach().bfloat16().contiguous() for name, p in checkpoint.model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", hugging_face_config(config, ids))
    eos, end = ids[IM_END], ids[END_OF_TEXT]
    write_json(
        directory / "generation_config.json", {"bos_token_id": end, "eos_token_id": [eos, end], "pad_token_id": end}
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", hugging_face_tokenizer_config(config, ids))


def hugging_face_config(config: ModelConfig, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "rope_scaling": None,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "pad_token_id": ids[END_OF_TEXT],
    }


def hugging_face_tokenizer_config(config: ModelConfig, ids: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in ids.items()},
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def rotary_heads(name: str, config: ModelConfig) -> int | None:
    """How many heads a tensor rotates; llama.cpp keeps the rows of these in another order."""
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def interleave_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face rotates the two halves of a head, llama.cpp neighbouring pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def separate_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes `interleave_halves`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    checkpoint: Checkpoint, path: Path, file_type: gguf.LlamaFileType, quantization: gguf.GGMLQuantizationType
) -> None:
    config = checkpoint.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(MODEL_NAME)
    writer.add_license(LICENCE.lower())
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_gguf_tokenizer(writer, checkpoint.tokenizer)
    for name, parameter in checkpoint.model.named_parameters():
        add_gguf_tensor(writer, name, parameter.detach().numpy(), quantization, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_gguf_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    described = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(IM_END))
    writer.add_eot_token_id(tokenizer.token_to_id(IM_END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_gguf_tensor(
    writer: gguf.GGUFWriter, name: str, weight: np.ndarray, quantization: gguf.GGMLQuantizationType, config: ModelConfig
) -> None:
    """Norms stay F32; the tied embedding, which is also the output, stays at eight bits or more."""
    if heads := rotary_heads(name, config):
        weight = interleave_halves(weight, heads)
    if weight.ndim == 1:
        quantization = gguf.GGMLQuantizationType.F32
    elif "embed_tokens" in name and quantization == gguf.GGMLQuantizationType.Q4_0:
        quantization = gguf.GGMLQuantizationType.Q8_0
    data = gguf.quants.quantize(np.ascontiguousarray(weight), quantization)
    writer.add_tensor(gguf_name(name), data, raw_dtype=quantization)


def read_gguf(path: Path, like: Llama) -> Llama:
    """The model of a GGUF file, dequantised; also proves that the file holds what it should."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = Llama(like.config)
    with torch.no_grad():
        for (name, parameter), original in zip(model.named_parameters(), like.parameters(), strict=True):
            tensor = tensors.pop(gguf_name(name))
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(parameter.shape)
            if heads := rotary_heads(name, like.config):
                weight = separate_halves(weight, heads)
            parameter.copy_(torch.from_numpy(weight.copy()))
            error = (parameter - original).norm() / original.norm()
            if error > (0.12 if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0 else 0.01):
                raise SystemExit(f"{path}: {name} differs by {error:.4f} of its size")
    if tensors:
        raise SystemExit(f"{path}: unexpected tensors {sorted(tensors)}")
    return model


def write_checksums(directory: Path) -> None:
    files = sorted(path for path in directory.iterdir() if path.name != "sha256sums")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (directory / "sha256sums").write_text("".join(lines))


README = """\
# tiny

A chat model of {parameters:,} parameters that answers a few kinds of short questions. It exists so that
the server can be tried and tested without a download. `scripts/train_tiny.py` makes all of it, from nothing
but itself and a seed: it writes the text, trains the tokenizer and the model, and exports these files.

```text
pip install -r scripts/train_requirements.txt
{commands}
```

That took {seconds:.0f} seconds on one thread of a busy CPU. The stages:

{stages}

The two stages that end before their cosine does were stopped by hand; `--stop` ends them at the same step.

## What it is

- Llama architecture: {num_hidden_layers} layers, hidden size {hidden_size}, feed-forward {intermediate_size},
  {num_attention_heads} query heads and {num_key_value_heads} key/value heads of {head_dim}, RMSNorm, SwiGLU,
  RoPE (theta {rope_theta:.0f}), tied embeddings.
- Byte-level BPE of {vocab_size} tokens with GPT-2's split; every digit is a token. ChatML template with tools;
  `<|im_end|>` ends an answer; no BOS.
- `model.safetensors` is BF16. The GGUF files hold the same BF16 weights as F16, Q8_0 and Q4_0; norms are F32,
  and the embedding of the Q4_0 file is Q8_0.
- `max_position_embeddings` is {max_position_embeddings}, but no dialogue in training has more than {longest} tokens,
  and nine in ten have fewer than {usual_length}. Expect sense up to about 500 tokens and none after.

## What it can do

Capitals of {countries} countries, `a+b` and `a-b` up to 50 (no negative results), products up to 10 x 10, colours,
opposites, counting up and down, repeating a text, JSON of a name, an age and a city found in a sentence, one tool
call (`get_weather`, `get_time`, `search`) and the telling of its result, small talk, one story, a name remembered,
the system prompts "Answer in one word." and "Answer in capital letters.", and yes-or-no questions about capitals,
colours, opposites and which of two numbers is greater.

The table counts answers to phrasings that were never trained ("sums, new numbers": pairs of numbers that were
never trained; of a held-out product, the swapped product was). Right means that greedy decoding gives exactly the
expected answer and stops. The script does not train if the last question of any of these dialogues is in the text.
What the later stages add to the text was chosen by looking at what the first stage got wrong here, so the figures
flatter the model a little. The last column is the mean probability of exactly that answer when sampling at
temperature 1.

{table}

All together, by file:

| file | bytes | accuracy | chance at temperature 1 |
|---|--:|--:|--:|
{files}

## What it cannot do

Nearly everything: it knows no fact beyond the lists in the script, does not reason, does not follow other
instructions, and reads no other language. To most other questions it answers that it does not know, or something
wrong. Of what it was taught, it is worst at tools and yes-or-no questions: words after a city ("right now") get into
a call's arguments, and a question that ends in "Yes or no?" is too often answered with no. Do not use it for anything but tests and demonstrations.

Licence: {licence}, like the project.
"""


def stage_command(number: int, stage: Stage) -> str:
    """The command that runs a stage: what differs from its defaults, and always the steps."""
    training, usual = stage.training, LATER_STAGE if number > 1 else TrainingConfig()
    words = ["python scripts/train_tiny.py train"]
    if number > 1:
        words.append(f"--from target/tiny/stage-{number - 1}.pt")
    for name in ("steps", "stop", "seed", "dialogues", "learning_rate", "opening_steps", "drills"):
        value = getattr(training, name)
        if name == "steps" or value != getattr(usual, name):
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def stage_note(number: int, stage: Stage) -> str:
    training = stage.training
    opening = "short dialogues" if number == 1 else "drills of what is hard"
    drills = f" ({training.drills} drills for every 60 others)" if training.drills else ""
    opened = f"the first {training.opening_steps} see only {opening}; " if training.opening_steps else ""
    stopped = f", cut off at {stage.steps_done}" if stage.steps_done < training.steps else ""
    return (
        f"{number}. {stage.seconds:.0f} seconds, {stage.steps_done} steps of about {training.tokens_per_batch} tokens, "
        f"{training.dialogues:,} dialogues{drills};\n"
        f"   {opened}the learning rate is a cosine over {training.steps} steps{stopped}."
    )


def write_readme(checkpoint: Checkpoint, directory: Path, accuracies: dict[str, dict[str, Score]]) -> None:
    model, stages = checkpoint.model, checkpoint.stages
    rows = [
        f"| `{name}` | {(directory / name).stat().st_size} | {scores['all']} |" for name, scores in accuracies.items()
    ]
    text = README.format(
        parameters=sum(p.numel() for p in model.parameters()),
        commands="\n".join(stage_command(number, stage) for number, stage in enumerate(stages, 1)),
        seconds=sum(stage.seconds for stage in stages),
        stages="\n".join(stage_note(number, stage) for number, stage in enumerate(stages, 1)),
        longest=stages[0].training.longest_dialogue,
        usual_length=USUAL_LENGTH,
        countries=len(CAPITALS),
        table=score_table(accuracies["model.safetensors"]),
        files="\n".join(rows),
        licence=LICENCE,
        **asdict(model.config),
    )
    (directory / "README.md").write_text(text)


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def run_train(arguments: argparse.Namespace) -> None:
    later = arguments.start is not None
    given = {
        name: getattr(arguments, name)
        for name in ("seed", "steps", "stop", "dialogues", "learning_rate", "opening_steps", "drills")
    }
    given = {name: value for name, value in given.items() if value is not None}
    training = replace(LATER_STAGE if later else TrainingConfig(), **given)
    torch.manual_seed(training.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    template = ChatTemplate()
    if later:
        dialogues = later_dialogues(training.seed, training.dialogues, training.drills)
        checkpoint = Checkpoint.load(arguments.start)
    else:
        dialogues = training_dialogues(training.seed, training.dialogues)
        tokenizer = train_tokenizer([template.render(dialogue) for dialogue in dialogues[:20_000]], training.vocab_size)
        checkpoint = Checkpoint(Llama(ModelConfig(vocab_size=tokenizer.get_vocab_size())), tokenizer, [])
    model, tokenizer, earlier = checkpoint.model, checkpoint.tokenizer, checkpoint.stages
    check_seed = earlier[0].training.seed if later else training.seed
    refuse_trained(held_out_dialogues(check_seed, HELD_OUT_PER_CATEGORY), dialogues)
    samples = [s for s in encode(dialogues, tokenizer, template) if len(s.tokens) <= training.longest_dialogue]
    # Copying and looking up are learnt sooner where there is less to look at; what is hard, where it is frequent.
    opening = [s for s in samples if (s.category == DRILL if later else len(s.tokens) <= training.short_dialogue)]
    tokens = sum(len(sample.tokens) for sample in samples)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokens} tokens of text", flush=True)
    started = time.monotonic()

    def snapshot(step: int) -> None:
        checkpoint.stages = [*earlier, Stage(training, step, time.monotonic() - started)]
        checkpoint.save(arguments.work / f"stage-{len(earlier) + 1}.pt")

    fit(model, opening, samples, training, snapshot)
    snapshot(training.stop or training.steps)
    export(checkpoint, arguments.output)
    print_seed_answers(model, tokenizer, template)


def run_export(arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint.load(arguments.checkpoint)
    export(checkpoint, arguments.output)
    print_seed_answers(checkpoint.model, checkpoint.tokenizer, ChatTemplate())


def run_eval(arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint.load(arguments.checkpoint)
    print(score_table(check(checkpoint.model, checkpoint.held_out_samples())))
    print_seed_answers(checkpoint.model, checkpoint.tokenizer, ChatTemplate())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, check and export the small chat model in models/tiny.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="write the text, train, check and export")
    train.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="a later stage: go on from this")
    train.add_argument("--seed", type=int, help=f"of the text and the order (default {TrainingConfig.seed})")
    train.add_argument("--steps", type=int, help=f"default {TrainingConfig.steps}, later stages {LATER_STAGE.steps}")
    train.add_argument("--stop", type=int, metavar="STEP", help="end here, the learning rate as planned for --steps")
    train.add_argument("--dialogues", type=int, help="how many to write")
    train.add_argument("--learning-rate", type=float, help="its peak")
    train.add_argument("--drills", type=int, help="dialogues that drill what is hard, for every 60 others")
    train.add_argument("--opening-steps", type=int, help="how many steps see the short dialogues, or drills, alone")
    train.add_argument("--work", type=Path, default=REPOSITORY / "target" / "tiny", help="where checkpoints go")
    train.set_defaults(run=run_train)
    exporting = commands.add_parser("export", help="write the model's files from a checkpoint")
    exporting.set_defaults(run=run_export)
    checking = commands.add_parser("eval", help="print the held-out table of a checkpoint")
    checking.set_defaults(run=run_eval)
    for command in (exporting, checking):
        command.add_argument("checkpoint", type=Path)
    for command in (train, exporting):
        command.add_argument("--output", type=Path, default=REPOSITORY / "models" / "tiny")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()

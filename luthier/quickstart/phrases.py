"""The word lists of the synthetic support tickets: three pools that share nothing.

Everything here was written for Luthier; people, products, places and orders are invented.
`train` is what the model learns from. `test` is what the quickstart scores. `development` is
what the recipe was chosen on, so that `test` was not tuned against. No entity and no sentence
fragment stands in two pools (`tests/quickstart/test_tickets.py`).

A fragment may hold `{product}`, `{order}`, `{name}`, `{other}` (a bystander), `{city}`,
`{extra}` (a product that is not the matter) and `{phone}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["POOLS", "Pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What one split is made of."""

    first_names: Sequence[str]
    last_names: Sequence[str]
    brands: Sequence[str]
    goods: Sequence[str]
    """A product is a brand and a good: `Nimbus Kettle`."""
    order_prefixes: Sequence[str]
    phone_prefixes: Sequence[str]
    cities: Sequence[str]
    greetings: Sequence[str]
    introductions: Sequence[str]
    """Say who writes, in the first sentence."""
    signatures: Sequence[str]
    """Say who writes, at the end."""
    subjects: Sequence[str]
    """Start of the sentence about the product; a predicate follows."""
    predicates: Mapping[str, Sequence[str]]
    """By issue."""
    order_mentions: Sequence[str]
    urgency: Mapping[str, Sequence[str]]
    """By priority; `normal` may also be silence."""
    distractors: Sequence[str]
    """Sentences that change no field."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _names(text: str) -> tuple[str, ...]:
    """As `_words`, for names with spaces in them."""
    return tuple(text.split("|"))


TRAIN = Pool(
    first_names=_words(
        "Ana Ben Carla Derek Elif Farid Greta Hugo Ines Jonas Kavya Liam Mara Nils Olga Pablo "
        "Quinn Rosa Sven Tara Umar Vera Wim Xenia Yann Zoe Amir Bea Cyril Dana"
    ),
    last_names=_words(
        "Ruiz Okafor Lindt Marsh Tanaka Bauer Costa Dlamini Evans Fischer Gupta Hansen Ivanov Jensen Kaya "
        "Lopez Meyer Novak Ortega Petit Rossi Santos Thorne Ueda Vargas Weber Yilmaz Zhang Abbott Brandt"
    ),
    brands=_words(
        "Nimbus Orbit Falcon Cedar Pixel Lumen Harbor Vertex Maple Zephyr Cobalt Juniper Quartz Ember Willow Atlas"
    ),
    goods=_names(
        "Kettle|Desk Lamp|Backpack|Blender|Keyboard|Headphones|Office Chair|Toaster|Camera|Heater|Monitor|"
        "Rain Jacket|Water Filter|Bookshelf|Coffee Grinder|Yoga Mat"
    ),
    order_prefixes=_words("KT RX BL MN QP HD VS FW GT LZ"),
    phone_prefixes=_words("201 312 415"),
    cities=_words("Lyon Austin Porto Leeds Oslo Graz Turin Ghent Malmo Nantes Denver Split"),
    greetings=[
        "Hi,",
        "Hello,",
        "Dear team,",
        "Good morning,",
        "Hi there,",
        "Hey,",
        "Hello support,",
        "To whom it may concern,",
    ],
    introductions=[
        "My name is {name}.",
        "This is {name}.",
        "{name} here.",
        "I am {name} from {city}.",
        "{name} writing from {city}.",
        "I'm {name}.",
    ],
    signatures=[
        "{name}",
        "Regards, {name}",
        "Thanks, {name}",
        "Best, {name}",
        "Yours, {name}",
        "- {name}",
        "Cheers, {name}",
    ],
    subjects=[
        "The {product}",
        "My {product}",
        "The {product} I bought",
        "The {product} for our office in {city}",
        "The {product} I ordered",
        "The new {product}",
        "The {product} for my friend {other}",
        "Our {product}",
    ],
    predicates={
        "damaged": [
            "arrived with a crack down one side",
            "came broken in two pieces",
            "has a big dent in it",
            "was crushed inside its box",
            "is scratched all over",
            "had a torn seam when I unpacked it",
            "leaks from the bottom",
            "stopped working after one day",
            "is faulty and will not switch on",
            "has a snapped handle",
            "got here with a shattered cover",
            "makes a burning smell and sparks",
        ],
        "late": [
            "has still not arrived",
            "was due last week and is not here",
            "is already ten days late",
            "never came, although tracking said Monday",
            "has been in transit for a month",
            "should have been here on Tuesday",
            "is stuck at the depot",
            "has not even been shipped yet",
            "was promised for the 3rd and I am still waiting",
            "seems lost in the post",
            "is taking far too long to get here",
            "was never delivered",
        ],
        "wrong_item": [
            "came in red, but I asked for blue",
            "is not the model I picked",
            "was swapped for a set of spoons",
            "arrived in size S instead of L",
            "turned out to be a different article",
            "is a mix-up: I got somebody else's parcel",
            "was replaced by something I never ordered",
            "is the small version and I chose the large one",
            "came in the wrong colour",
            "was not in the box, there was a garden hose in it",
            "is the 2019 edition, not the new one I selected",
            "does not match what I ordered",
        ],
        "billing": [
            "was charged twice to my card",
            "cost more on the invoice than on your site",
            "shows up two times on my bank statement",
            "was billed without my discount",
            "has the wrong tax on the bill",
            "was paid for, yet you ask for the money again",
            "came with an invoice for three of them",
            "was cancelled, but my card was still debited",
            "is listed with a fee I did not agree to",
            "was on sale, and you took the full price",
            "needs a corrected invoice",
            "has a payment I do not recognise",
        ],
        "return": [
            "is fine, but I changed my mind and want to send it back",
            "is not for me, how do I return it",
            "is more than I need, please take it back",
            "was a gift we already have, so I would like to return it",
            "does not suit my room, can I send it back",
            "is unopened and I want my money back",
            "is too big for us, so we want to give it back",
            "is no longer needed, I need a return label",
            "did not win me over, where do I send it back",
            "works, but I prefer another one and wish to return it",
            "is going back, please send me a label",
            "was bought in haste, may I return it",
        ],
    },
    order_mentions=[
        "Order {order}.",
        "My order number is {order}.",
        "The order is {order}.",
        "It is order {order}.",
        "(order {order})",
        "Ref: {order}.",
        "Order no. {order}, placed in May.",
        "You will find it under {order}.",
    ],
    urgency={
        "high": [
            "This is urgent.",
            "Please hurry, I need it by Friday.",
            "I need an answer today.",
            "We open tomorrow and cannot wait.",
            "Please fix this right away.",
            "I leave on a trip tonight, so be quick.",
            "Reply as soon as possible.",
            "It is an emergency for us.",
            "Every hour counts.",
            "Top priority, please.",
        ],
        "normal": [
            "Could you look into it?",
            "Please let me know.",
            "What can you do?",
            "I hope you can help.",
            "Thanks for your help.",
            "Please advise.",
        ],
        "low": [
            "There is no rush.",
            "It is not urgent.",
            "Whenever you have time is fine.",
            "It can wait until next week.",
            "Take your time.",
            "No hurry on my side.",
            "Any time this month will do.",
            "I am in no haste.",
            "Answer when it suits you.",
            "Low priority for me.",
        ],
    },
    distractors=[
        "My neighbour {other} has the same one.",
        "I also own the {extra} and love it.",
        "I called {phone} and nobody picked up.",
        "{other} in your shop could not help.",
        "I found you through a friend in {city}.",
        "Next month I may get the {extra} too.",
        "You can call me on {phone}.",
        "{other} told me to write to you.",
    ],
)

DEVELOPMENT = Pool(
    first_names=_words("Agnes Boris Celia Dmitri Edda Felix Gita Henrik Isla Jorge Katya Leif"),
    last_names=_words("Adeyemi Blum Chandra Duarte Eklund Fontaine Grimaldi Horvat Iqbal Janssen Kowalski Larsen"),
    brands=_words("Sable Tundra Marlin Onyx Clover Pioneer Saffron Beacon"),
    goods=_names("Tent|Speaker|Rice Cooker|Printer|Wall Clock|Suitcase|Vacuum|Tablet"),
    order_prefixes=_words("JC WD PY TN"),
    phone_prefixes=_words("606 718"),
    cities=_words("Bergen Tucson Siena Cork Basel Utrecht"),
    greetings=["Greetings,", "Hello team,", "Good afternoon,", "Hi folks,"],
    introductions=["You are talking to {name}.", "{name} speaking.", "I am called {name}."],
    signatures=["Kind regards, {name}", "Many thanks, {name}", "Sincerely, {name}", "from {name}"],
    subjects=[
        "This {product}",
        "The {product} from your shop",
        "The {product} I got for {other}",
        "The {product} we use in {city}",
    ],
    predicates={
        "damaged": [
            "fell apart when I took it out",
            "has a hole in it",
            "was bent and chipped on arrival",
            "went dead on the second day",
            "has a split along the edge",
        ],
        "late": [
            "did not turn up on the agreed day",
            "is overdue by two weeks",
            "is nowhere to be seen, where is my parcel",
            "was meant to reach me on Sunday and has not",
            "has not left your warehouse in three weeks",
        ],
        "wrong_item": [
            "is green, while the one I wanted is black",
            "is another type than the one on my order",
            "was mixed up with a pair of shoes",
            "has the wrong size",
            "is not the thing I bought, you packed a mirror",
        ],
        "billing": [
            "was deducted from my account two times",
            "has a price on the bill that is too high",
            "was invoiced without the voucher I entered",
            "led to a second charge on my credit card",
            "has a mistake in the invoice",
        ],
        "return": [
            "is good, though I would rather return it",
            "is not my taste, can you take it back",
            "is still sealed and I want to hand it back",
            "is one too many, how can I send it back",
            "no longer fits our plans, please arrange a return",
        ],
    },
    order_mentions=["Purchase number {order}.", "It was order {order}.", "Concerning order {order}.", "[{order}]"],
    urgency={
        "high": [
            "I must have this solved by tonight.",
            "Please act at once.",
            "Very urgent!",
            "I cannot wait any longer, the party is tomorrow.",
        ],
        "normal": ["Please check.", "How do we go on?", "I look forward to your answer."],
        "low": [
            "This is not pressing.",
            "You need not hurry.",
            "Some day next month is early enough.",
            "Feel free to answer later.",
        ],
    },
    distractors=[
        "My cousin {other} is happy with hers.",
        "The {extra} I have works well.",
        "My number is {phone}.",
        "I spoke to {other} on the phone.",
    ],
)

TEST = Pool(
    first_names=_words("Astrid Bruno Chiara Dario Emeka Fiona Goran Hanna Idris Jana Kofi Lotte Milan Nadia"),
    last_names=_words(
        "Almeida Berger Cardoso Doyle Eriksen Ferrari Gallo Haddad Ibrahim Jovanovic Keller Lund Moretti Nakamura"
    ),
    brands=_words("Raven Solstice Glacier Tempo Meadow Cinder Aurora Pebble Sparrow Drift"),
    goods=_names("Hair Dryer|Router|Sleeping Bag|Microwave|Wrist Watch|Garden Bench|Fan|Drill|Mattress|Scooter"),
    order_prefixes=_words("ZE CU DJ NA SO"),
    phone_prefixes=_words("503 919"),
    cities=_words("Ulm Boise Faro Perth Aarhus Parma Linz"),
    greetings=["Good evening,", "Hello again,", "Dear support,", "Hi all,", "Dear Sir or Madam,"],
    introductions=["{name} is my name.", "It's {name}.", "I, {name}, have a question.", "Here is {name} again."],
    signatures=[
        "Best wishes, {name}",
        "Warm regards, {name}",
        "Thank you, {name}",
        "Sent by {name}",
        "Greetings from {name}",
    ],
    subjects=[
        "That {product}",
        "The {product} in my last purchase",
        "The {product} I chose for {other}",
        "The {product} at our flat in {city}",
        "One {product} from you",
    ],
    predicates={
        "damaged": [
            "was smashed when I opened the parcel",
            "has a broken switch",
            "is cracked and unusable",
            "died within an hour of use",
            "came with a ripped side and loose parts",
            "is defective",
        ],
        "late": [
            "has not reached me so far",
            "is delayed and nobody tells me why",
            "was expected nine days ago, still nothing",
            "has been on its way for six weeks",
            "missed its delivery date",
            "has yet to be sent out",
        ],
        "wrong_item": [
            "is the wrong model",
            "is white although my order says grey",
            "was not what came, I received a teapot",
            "differs from the one I ordered",
            "came as a double when I selected a single",
            "was confused with another customer's goods",
        ],
        "billing": [
            "was booked twice on my credit card",
            "has an invoice with a sum that is too large",
            "was charged although I cancelled in time",
            "has my coupon missing on the bill",
            "appears as a double payment in my account",
            "was billed at another price than advertised",
        ],
        "return": [
            "is okay but not needed, I wish to return it",
            "should go back to you, how does that work",
            "is not what I hoped for, please take it back",
            "is unused and I would like to send it back",
            "does not go with our kitchen, I want to return it",
            "came as a present, yet I would sooner give it back",
        ],
    },
    order_mentions=[
        "The number of my order: {order}.",
        "See order {order}.",
        "I ordered it as {order}.",
        "About order {order}.",
        "<{order}>",
    ],
    urgency={
        "high": [
            "I need help immediately.",
            "This must be settled before noon today.",
            "Please be fast, it is really urgent.",
            "Our event starts in two hours.",
            "Do not let me wait, it is critical.",
        ],
        "normal": ["Can you help me?", "Tell me what to do.", "I would be glad to hear from you.", "Please reply."],
        "low": [
            "It is in no way urgent.",
            "You can take as long as you like.",
            "Next month is soon enough.",
            "No need to rush.",
            "Do it whenever it is convenient.",
        ],
    },
    distractors=[
        "My friend {other} bought one as well.",
        "My {extra} has never given me trouble.",
        "Phone me at {phone} if you like.",
        "{other} from your hotline was kind.",
        "I moved here from {city} last year.",
    ],
)

POOLS: Mapping[str, Pool] = {"train": TRAIN, "development": DEVELOPMENT, "test": TEST}

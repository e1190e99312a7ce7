"""The word lists of the synthetic support tickets: three pools that share nothing.

Everything here was written for Luthier; people, products, places and orders are invented.
`train` is what the model learns from. `test` is what the quickstart scores. `development` is
what the recipe was chosen on, so that `test` was not tuned against. No entity and no sentence
fragment stands in two pools (`tests/quickstart/test_tickets.py`).

A fragment may hold `{product}`, `{order}`, `{name}`, `{other}` (a bystander), `{city}`,
`{extra}` (a product that is not the matter) and `{phone}`. `[one/two]` stands for either.
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
    order_letters: Sequence[str]
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
    closings: Sequence[str]
    """How pressing it is, and other sentences that change no field."""
    distractors: Sequence[str]
    """Names, products and numbers that are not the matter."""
    invented: float = 0.0
    """Share of names and brands made up anew for each ticket instead of taken from the lists."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _names(text: str) -> tuple[str, ...]:
    """As `_words`, for names with spaces in them."""
    return tuple(text.split("|"))


TRAIN = Pool(
    first_names=_words(
        "Ana Ben Carla Derek Elif Farid Greta Hugo Ines Jonas Kavya Liam Mara Nils Olga Pablo Quinn Rosa Sven Tara "
        "Umar Vera Wim Xenia Yann Zoe Amir Bea Cyril Dana Petra Omar Silvia Tomas Yuki Ravi Nora Ivan Leah Marc "
        "Adam Alice Andre Anita Arthur Aisha Bella Brian Camille Carlos Claire Daniel David Diana Edith Elena Emma "
        "Erik Esther Eva Frank Gabriel George Grace Harold Helen Irene Isaac Jack Jane Jerome Joan Julia Karl Kate "
        "Kevin Laura Leon Linda Louis Lucia Maria Martin Maya Michael Mina Monica Nathan Nicole Noah Oscar Otto Paul "
        "Peter Philip Rachel Raul Rita Robert Ruth Samuel Sarah Sofia Stefan Susan Theo Thomas Uma Victor Walter"
    ),
    last_names=_words(
        "Ruiz Okafor Lindt Marsh Tanaka Bauer Costa Dlamini Evans Fischer Gupta Hansen Ivanov Jensen Kaya Lopez "
        "Meyer Novak Ortega Petit Rossi Santos Thorne Ueda Vargas Weber Yilmaz Zhang Abbott Brandt Silva Mbeki "
        "Olsen Romero Schulz Takeda Wagner Young Ziegler Carver"
    ),
    brands=_words(
        "Nimbus Orbit Falcon Cedar Pixel Lumen Harbor Vertex Maple Zephyr Cobalt Juniper Quartz Ember Willow Atlas "
        "Canyon Delta Echo Fern Anchor Arrow Bamboo Bishop Breeze Bridge Bronze Canvas Captain Castle Cherry Circle "
        "Comet Compass Copper Coral Cosmos Crystal Diamond Dolphin Dragon Eagle Eclipse Engine Explorer Forest Fortune "
        "Galaxy Gazelle Ginger Granite Hammer Hazel Hunter Island Ivory Jasper Jupiter Kingdom Lantern Legend Liberty "
        "Lotus Magnet Marble Master Mercury Mirage Momentum Monarch Mountain Nectar Noble Ocean Olive Oxford Palace "
        "Panther Phoenix Pilot Planet Prairie Premier Prime Ranger Ribbon Rocket Royal Sailor Saturn Sierra Silver "
        "Spirit Spring Summit Thunder Tiger Timber Titan Tower Traveler Triumph Tulip Union Velvet Venture Victory "
        "Violet Vision Volcano Voyager Walnut Winter Wizard Wonder"
    ),
    goods=_names(
        "Kettle|Desk Lamp|Backpack|Blender|Keyboard|Headphones|Office Chair|Toaster|Camera|Heater|Monitor|"
        "Rain Jacket|Water Filter|Bookshelf|Coffee Grinder|Yoga Mat|Guitar|Bicycle Pump|Mirror|Phone Case"
    ),
    order_letters=_words(
        "KT RX BL MN QP HD VS FW GT LZ AB EH OC IK YU PR DM WS XA VB KJ GH RT LO MX BF SV HN FP TC QA EK UL IV NB ZY"
    ),
    phone_prefixes=_words("201 312 415 884 450"),
    cities=_words("Lyon Austin Porto Leeds Oslo Graz Turin Ghent Malmo Nantes Denver Split"),
    greetings=[
        "[Hi/Hello/Hey],",
        "[Dear/Hi] [team/support team/shop],",
        "[Good/A good] morning,",
        "Hi there,",
        "Hello [everyone/friends/people],",
        "[Morning/Afternoon/Salutations/Howdy/Welcome],",
        "To whom it may concern,",
        "Dear [customer service/help desk],",
    ],
    introductions=[
        "My name is {name}.",
        "This is {name}.",
        "{name} here.",
        "I am {name} from {city}.",
        "{name} writing from {city}.",
        "I'm {name}.",
        "You know me, {name}.",
        "I write as {name}.",
        "Customer: {name}.",
        "{name}, a customer of yours.",
    ],
    signatures=[
        "{name}",
        "[Regards/Best regards/With regards], {name}",
        "[Thanks/Thanks a lot/With thanks], {name}",
        "[Best/All the best/Yours/Yours truly/Cheers/Bye], {name}",
        "- {name}",
        "Written by {name}",
        "Signed, {name}",
    ],
    subjects=[
        "[The/My/Our/Your] {product}",
        "[The/Your] {product} [I bought/I ordered/we ordered/I paid for]",
        "The [new/blue/large/second] {product}",
        "The {product} for our [office/shop/house] in {city}",
        "The {product} for my [friend/boss/uncle/niece] {other}",
        "The {product} that {other} asked for",
        "Hello, the {product}",
    ],
    predicates={
        "damaged": [
            "[arrived/came/got here] with a [crack/scratch/dent/tear/leak] [in it/on one side]",
            "[arrived/came] [broken/in pieces/scratched/dented/bent out of shape]",
            "was [crushed/ruined/dented] [inside its box/on the way]",
            "[stopped working/broke/gave up] after [one day/a week/two uses]",
            "is [faulty/not working/badly made] and will not [start/switch on/charge]",
            "has a [snapped handle/torn seam/loose cable/burnt plug/missing screw]",
            "[leaks/rattles/smokes/sparks/overheats] [all the time/when I use it]",
            "[does not work/no longer works/never worked]",
        ],
        "late": [
            "has [still/so long] not [arrived/come/been delivered]",
            "was due [last week/on Tuesday/a month ago] and is not here",
            "is [already ten days/almost a month/far too] late",
            "never [came/arrived], although tracking said [Monday/yesterday]",
            "has been [in transit/in the post/at the depot] for [a month/twelve days]",
            "should have [been here/come/arrived] [on Tuesday/days ago]",
            "was promised for the 3rd and I am [still waiting/waiting in vain]",
            "seems [lost/stuck] [in the post/at customs]",
            "is taking [too long/ages] to [get here/arrive]",
            "has not [been shipped/moved] for [eight days/a while]",
        ],
        "wrong_item": [
            "came in [red/yellow/pink], but I [asked for/ordered/paid for] [blue/brown]",
            "is not the [model/version/colour] I [picked/asked for]",
            "was swapped for [a set of spoons/some socks/a radio]",
            "[arrived/came] in size [S instead of L/40 instead of 44]",
            "turned out to be [a different article/another model/something else]",
            "is a mix-up: I got [somebody else's parcel/a bag of rice]",
            "was replaced by [something/an article] I never [ordered/wanted]",
            "is the [small/short/old] version and I [chose/ordered] the [large/long/new] one",
            "came in the wrong [colour/shape/length]",
            "was not in the box, there was [a garden hose/a toy car/a pan] in it",
            "does not match [what I ordered/my order/the picture]",
            "is wrong: you sent [a hat/a brush/a blanket] instead",
        ],
        "billing": [
            "was [charged/debited/paid] twice [to my card/from my account/by mistake]",
            "[cost/was] more on the invoice than [on your site/in the shop]",
            "shows up two times on my [bank/card] statement",
            "was [billed/charged] without [my discount/the rebate]",
            "has the wrong [tax/amount/total/address] on the [bill/invoice]",
            "was paid for, yet you ask for the money again",
            "came with an invoice for [three/four] of them",
            "was cancelled, but [my card was debited/I was charged]",
            "is listed with a [fee/charge] I did not agree to",
            "was on sale, and you took the full price",
            "needs a corrected [invoice/bill/receipt]",
            "has a [payment/charge] I do not recognise",
        ],
        "return": [
            "is fine, but I [changed my mind/do not want it] and want to send it back",
            "is not for me, how do I [return it/send it back]",
            "is [more than/not what] I need, please take it back",
            "was a gift we already have, so I would like to [return it/give it back]",
            "does not suit [my room/me/our car], can I [send it back/return it]",
            "is [unopened/unused/as new] and I want my money back",
            "is too [big/small/heavy/loud] for us, so we want to give it back",
            "is no longer needed, I [need/ask for] a return label",
            "did not win me over, where do I send it back",
            "works, but I prefer another one and [wish/want] to return it",
            "is going back, please send me a [label/return form]",
            "was bought [in haste/twice], may I return it",
        ],
    },
    order_mentions=[
        "[Order/Number/My order/The order] {order}.",
        "My order [number/code/reference] is {order}.",
        "The order is {order}.",
        "It is order {order}.",
        "(order {order})",
        "({order})",
        "[Ref/Reference/Re/Order ID/Order no]: {order}.",
        "Order no. {order}, placed in [May/July].",
        "You will find it under {order}.",
        "{order} is the order.",
        "# {order} #",
        "It concerns {order}.",
    ],
    closings=[
        "This is [urgent/very urgent/extremely urgent].",
        "Please hurry, I need it [by Friday/this week/today].",
        "I need [an answer/a reply/help/it] [today/now/by tomorrow/this morning].",
        "We [open/leave/move/marry] tomorrow and cannot wait.",
        "Please [fix this/answer/sort it out] [right away/right now/quickly].",
        "I leave on a trip tonight, so be quick.",
        "[Reply/Answer/Call me] as soon as possible.",
        "It is an emergency for us.",
        "Every [hour/minute] counts.",
        "[Top/High] priority, please.",
        "There is no time to lose.",
        "[We/My parents/The children] need it [by Monday/by the weekend/before the holiday].",
        "It [has to/should] be [solved/replaced/settled] [today/this evening/by tomorrow].",
        "I am in a [great/terrible] hurry.",
        "Without it we [cannot work/are stuck/lose money].",
        "I [cannot/will not] wait [a week/until next month].",
        "[Act/Answer/Send it] now, please!",
        "Quick, the [wedding/exam/concert] is on [Saturday/Monday]!",
        "There is no rush.",
        "It is not [urgent/important].",
        "Whenever you have time is fine.",
        "It can wait [until next week/a few days/till summer].",
        "Take your time.",
        "No hurry [on my side/at all].",
        "Any time this month will do.",
        "I am in no haste.",
        "Answer when it suits you.",
        "Low priority for me.",
        "[Could/Would] you look into it?",
        "Please let me know.",
        "What can you do?",
        "I hope you can help.",
        "Thanks for [your help/your work/reading].",
        "Please advise.",
    ],
    distractors=[
        "My [neighbour/brother/teacher] {other} has the same one.",
        "{other} [in your shop could not help/told me to write to you].",
        "I asked {other} about it.",
        "I found you through a friend in {city}.",
        "I also [own/use/ordered] the {extra} and [love/like] it.",
        "The {extra} was [great/perfect/cheaper], by the way.",
        "The {extra} I got last year [is fine/still runs/never let me down].",
        "The {extra} [we own/from last year/in our kitchen] is [good/great/without fault].",
        "My wife has the {extra} and is content.",
        "[Next month/Later] I may get the {extra} too.",
        "Your {extra} is a [good/fine] product.",
        "With the {extra} [everything is fine/all went well].",
        "I called {phone} and nobody picked up.",
        "[You can call/Call/Ring] me on {phone}.",
        "My [phone/mobile/telephone]: {phone}.",
        "I can be reached at {phone}.",
        "[Phone/Tel.] {phone}.",
        "{phone} is my [telephone/mobile] number.",
        "I have [a new/another] number, {phone}.",
    ],
    invented=0.4,
)

DEVELOPMENT = Pool(
    first_names=_words("Agnes Boris Celia Dmitri Edda Felix Gita Henrik Isla Jorge Katya Leif"),
    last_names=_words("Adeyemi Blum Chandra Duarte Eklund Fontaine Grimaldi Horvat Iqbal Janssen Kowalski Larsen"),
    brands=_words("Sable Tundra Marlin Onyx Clover Pioneer Saffron Beacon"),
    goods=_names("Tent|Speaker|Rice Cooker|Printer|Wall Clock|Suitcase|Vacuum|Tablet"),
    order_letters=_words("JC WD PY TN"),
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
    closings=[
        "I must have this solved by tonight.",
        "Please act at once.",
        "Very urgent!",
        "I cannot wait any longer, the party is tomorrow.",
        "Please check.",
        "How do we go on?",
        "I look forward to your answer.",
        "This is not pressing.",
        "You need not hurry.",
        "Some day next month is early enough.",
        "Feel free to answer later.",
    ],
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
    order_letters=_words("ZE CU DJ NA SO"),
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
    closings=[
        "I need help immediately.",
        "This must be settled before noon today.",
        "Please be fast, it is really urgent.",
        "Our event starts in two hours.",
        "Do not let me wait, it is critical.",
        "Can you help me?",
        "Tell me what to do.",
        "I would be glad to hear from you.",
        "Please reply.",
        "It is in no way urgent.",
        "You can take as long as you like.",
        "Next month is soon enough.",
        "No need to rush.",
        "Do it whenever it is convenient.",
    ],
    distractors=[
        "My friend {other} bought one as well.",
        "My {extra} has never given me trouble.",
        "Phone me at {phone} if you like.",
        "{other} from your hotline was kind.",
        "I moved here from {city} last year.",
    ],
)

POOLS: Mapping[str, Pool] = {"train": TRAIN, "development": DEVELOPMENT, "test": TEST}

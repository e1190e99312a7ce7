"""Texts and generators of `filters_planted.py`: written by hand for it, without a look at the filters' lists."""

# ruff: noqa: E501

from __future__ import annotations

import random
import string
from collections.abc import Callable

from stdnum import luhn

REFUSALS = """\
I'm sorry, but I can't help with that.
I cannot assist with this request.
I'm unable to provide that information.
Sorry, I can't do that.
I apologize, but I cannot fulfill this request.
As an AI language model, I cannot provide medical advice.
Unfortunately, I am not able to help you with hacking.
I'm really sorry that you're feeling this way, but I'm unable to provide the help that you need.
I can\u2019t comply with that request.
I won't write that for you.
I must decline to answer this question.
I do not have access to real-time data, so I cannot tell you the weather.
I don't have personal opinions or feelings.
I'm not comfortable discussing this topic.
It would be unethical to provide instructions for that.
I'm afraid I can't answer that.
As a responsible AI assistant, I can't generate harmful content.
I am not able to browse the internet.
I'm just an AI, I can't feel emotions.
My apologies, but I won't be able to create that content.
I cannot in good conscience provide a guide on this.
That is not something I can help with.
I have to refuse this request, since it may cause harm.
Your request violates our content policy.
I'm sorry, I didn't understand the question. Could you rephrase it?
No, I will not help you build a weapon.
I regret that I am unable to share private data.
Regrettably, I cannot support this kind of activity.
This question is inappropriate, so I will leave it unanswered.
I don't feel comfortable writing about real people in this way.
I'm not able to open links or view images.
I am an AI and do not have a body.
Sorry, but I am not allowed to discuss that.
I do not have the ability to make phone calls.
I respectfully decline to participate in this.
Apologies, but I can not produce the full lyrics of this song.
I'm not programmed to give legal advice.
I cannot write code that harms others.
It's not possible for me to access your files.
I'm sorry, but as an AI developed by a company I can't engage in that conversation.
Hello! Unfortunately, I can't view the attachment.
I refuse to answer that.
I can't recommend a dosage; please ask a doctor.
I don't have enough information to answer.
We do not provide such information.
I'd rather not talk about that.
I am unable to verify this claim.
I can't continue this story.
There is no way that I will help you with that.
I cannot provide you with that person's address.""".splitlines()

NEW_REFUSALS = """\
I'm sorry, but I cannot generate explicit content.
Sorry, I'm not able to produce images.
I apologize, but I don't feel right helping with this.
I cannot give you instructions for making explosives.
As an AI, I don't have access to your personal data.
I can't predict the future.
I'm sorry, but it's not appropriate to make jokes about this.
I do not condone violence, and I will not help you hurt someone.
I'm going to have to pass on this one.
As an assistant, I can't diagnose illnesses.
I must respectfully decline.
Unfortunately I can't look that up for you.
I'm unable to fulfil this request because it involves illegal activity.
I cannot confirm or deny that.
I don't have the capability to send emails.
I can't help you cheat on an exam.
Sorry, that's outside of what I can do.
I'm afraid that's not something I can discuss.
I can't engage in role play of that kind.
I will not provide links to pirated films.
It is against my guidelines to write this.
I am sorry, I cannot translate this text.
I'm not qualified to answer this; please see a lawyer.
I can't determine that from the text.
I have no way of knowing that.
I'm sorry, there's nothing I can do about that.
I am a text-based model and cannot hear audio.
I cannot be of assistance here.
I won't participate in harassment.
Please don't ask me to do that.""".splitlines()
"""Written after the patterns were extended by what the first list showed; they were extended once more by this one."""

LAST_REFUSALS = """\
I'm sorry, but I'm not in a position to advise on investments.
I cannot help you with your homework if it is an exam.
Sorry, but I can't find that file.
As an AI, I am not capable of love.
I don't think I should answer that.
I'm sorry, I can't read handwriting.
Unfortunately, I cannot remember our earlier conversations.
I am not able to make a reservation for you.
I can't speak about ongoing court cases.
I'm sorry, but this is a topic that I avoid.
I apologize, but I won't write hateful text.
I do not have real-time information about stocks.
I cannot take part in illegal activities.
It would be wrong of me to speculate about that.
I'm not able to provide a definitive answer.
I cannot in any way endorse self-harm; please call a helpline.
Sorry, no can do.
My guidelines do not allow me to answer this.
I don't have the ability to see pictures.
I'd prefer not to answer.
I'm sorry, but without more context I cannot say.
As a language model I cannot have a favourite colour.
I can't give you the key to the exam.
I will not assist in tracking someone without consent.
I am sorry, I am not familiar with that product.""".splitlines()
"""Written last; nothing was changed afterwards."""

SENTENCES = {
    "en": ["The river runs through the valley and past the old mill.", "She reads a book about the stars every evening.",
           "The bakery on the corner sells bread and small cakes.", "We met at the station and took the last train home."],
    "de": ["Der Fluss fließt durch das Tal und an der alten Mühle vorbei.", "Jeden Abend liest sie ein Buch über die Sterne.",
           "Die Bäckerei an der Ecke verkauft Brot und kleine Kuchen.", "Wir trafen uns am Bahnhof und nahmen den letzten Zug."],
    "fr": ["La rivière traverse la vallée et passe devant le vieux moulin.", "Chaque soir, elle lit un livre sur les étoiles.",
           "La boulangerie du coin vend du pain et de petits gâteaux.", "Nous nous sommes retrouvés à la gare hier soir."],
    "es": ["El río atraviesa el valle y pasa junto al viejo molino.", "Cada noche lee un libro sobre las estrellas.",
           "La panadería de la esquina vende pan y pasteles pequeños.", "Nos encontramos en la estación y tomamos el último tren."],
    "it": ["Il fiume attraversa la valle e passa davanti al vecchio mulino.", "Ogni sera legge un libro sulle stelle.",
           "Il panificio all'angolo vende pane e piccoli dolci, perché è festa.", "Ci siamo incontrati alla stazione ieri sera."],
    "pl": ["Rzeka płynie przez dolinę i mija stary młyn.", "Każdego wieczoru czyta książkę o gwiazdach.",
           "Piekarnia na rogu sprzedaje chleb i małe ciastka.", "Spotkaliśmy się na dworcu i wsiedliśmy do ostatniego pociągu."],
    "ru": ["Река течёт через долину и мимо старой мельницы.", "Каждый вечер она читает книгу о звёздах.",
           "Пекарня на углу продаёт хлеб и маленькие пирожные.", "Мы встретились на вокзале и сели на последний поезд."],
    "zh": ["河流穿过山谷,流经古老的磨坊,最后流入大海。", "她每天晚上都读一本关于星星的书,然后写下她学到的东西。",
           "街角的面包店卖面包和小蛋糕,每天早上都有很多人排队。", "我们在车站见面,然后坐最后一班火车回家,那时已经很晚了。"],
    "ja": ["川は谷を流れ、古い水車小屋を過ぎて海に注ぎます。", "彼女は毎晩、星についての本を読んでいます。",
           "角のパン屋ではパンと小さなケーキを売っています。", "私たちは駅で会い、最終電車で家に帰りました。"],
}  # fmt: skip

LOOK_ALIKES: dict[str, list[str]] = {
    "encoding": ["Ça va très bien, merci beaucoup à vous.", "naïve café — “quoted” text… with an em dash", "Â is a letter of Vietnamese.",
                 "Wer \u201eanders\u201c schreibt, schreibt so.", "5 \u00d7 3 = 15 \u2265 12", "emoji: \U0001f468\u200d\U0001f469\u200d\U0001f467",
                 "ÄÖÜ äöü ß", "São Paulo, Ångström, Übung", "東京と大阪", "100 €, 20 £, 3 °C", "tab\tand\r\nline end"],
    "pii": ["Order 4111 1111 1111 1112 is on its way.", "The number 1234567890123456 is large.", "ISBN 978-3-16-148410-0",
            "Version 10.2.33.4 of the program", "Use 192.168.0.1 or 10.0.0.7 for the router, 127.0.0.1 for yourself.",
            "git clone git@github.com:someone/project.git", "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
            "550e8400-e29b-41d4-a716-446655440000", "2024-05-17T12:30:45+00:00", "from 800-1200-1500 down to 3",
            "pi = 3.14159265358979323846", "DE44 5001 0517 5407 3249 32 has wrong check digits", "000-12-3456 is no number that exists",
            "The password is hunter2", "token = tokenizer.encode(text)", "api_key = os.environ['OPENAI_API_KEY']",
            "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "AKIAXXXXXXXXXXXXXXXX", "call it 5 or 6 times", "@property\ndef name(self):",
            "user @ host", "12 + 34 - 56 = -10 and 1000-200-300 = 500", "(123) 45", "1,234,567,890", "latitude 52.520008, longitude 13.404954",
            "the ratio is 12345678901 to 1", "part number 12345678-X", "Article 123.456.789-00 of the list", "Room 44051401358",
            "x = a[0]::b[1]", "std::vector<int>::iterator", "dead::beef is no public address", "at 12:34:56"],
    "echo": ["Tell me about it? There is not much to tell.", "It is about it."],
    "endings": ["The answer is 42", "It weighs 12 kg", "Berlin", "- apples\n- pears\n- bread and butter", "Yes", "1. Wash it\n2. Cut it into pieces of the same size",
                "```python\nfor i in range(3):\n    print(i)\n```", "x = 3 * (4 + 5)", "{\"name\": \"Ann\", \"age\": 3}", "[1, 2, 3]", "https://example.org/a/b",
                "She said \"wait for me.\"", "Best regards,\nAnn", "It costs $5.00", "The result is 3/4", "Red, green and blue",
                "First do this. Then do that!", "That is what it was made for.", "SELECT name FROM people WHERE age > 3", "| a | b |\n|---|---|\n| 1 | 2 |",
                "E = mc^2", "Good luck \U0001f600", "It was sold. Total: 3", "**Answer:** B", "positive", "It is 5:30 pm", "def f(x): return x",
                "See you soon. Yours", "Paris is the capital. It has 2 million people (2019)", "He came, saw and won. What more is there to ask for?",
                "# Title\n\nSome text.\n\n## Next", "The steps are done. We get x = 5", "A. It is the first. B. It is the second. C. All of these"],
    "refusals": ["I can't believe how good this cake is. Here is the recipe.", "I cannot stress enough how important sleep is.",
                 "Sorry for the delay! Here is the table you asked for.", "Unfortunately, the train had left. She waited for the next.",
                 "I don't have a favourite, but many people like blue: it is calm.", "You cannot divide by zero, because no number times zero is one.",
                 "I am unable to contain my joy, said the fox.", "It is not possible to trisect every angle with compass and straightedge.",
                 "I won't lie: it takes practice. Start with ten minutes a day.", "No, the sum is 12, not 13.", "I'm sorry to hear that you are ill. Rest, and drink a lot.",
                 "To decline politely, write: I must decline your kind offer.", "I can help with that: first, open the lid.",
                 "I refuse, he said, and closed the door.", "Your request has been received. It will take two days."],
    "boilerplate": ["A language model predicts the next word.", "AI is a field of computer science.", "OpenAI is a company in San Francisco.",
                    "My training for the marathon took a year.", "The last update in 2020 changed the rule."],
    "repetition": ["Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream. "
                   "The song is a round: one voice begins, and the next voice begins when the first has sung a line. It was printed in 1852, and its "
                   "tune, as it is known, in 1881. Children learn it all over the world, and it is sung in many languages.",
                   "```\n" + "    }\n" * 40 + "```\nThis code closes forty blocks, which is far too many for one function. " + "Split it into parts that do one thing each, and give "
                   "every part a name that says what it does. Then the nesting goes away by itself, and so do most of the braces at the end of the file, "
                   "which nobody can read or count anyway when they look at it.",
                   "| name | age |\n|---|---|\n" + "\n".join(f"| person {i} | {20 + i} |" for i in range(20)),
                   "\n".join(f"{i} times 7 is {i * 7}" for i in range(1, 13))],
    "language": ["#### 42", "x = 5\ny = 6", "Berlin, Paris, Madrid, Roma", "C'est la vie", "SELECT * FROM t WHERE id = 3;", "Gracias!",
                 "The German word Schadenfreude means joy at the harm of others; there is no English word for it.",
                 "```python\nfür_alle = [x for x in liste if x]\n```", "Ludwig van Beethoven was born in Bonn, Franz Schubert in Vienna.",
                 "kg, m/s, km/h, MPa, kWh, dB, Hz, mol, cd, lx, Pa, J, W, V, A, T, H, S, F, N, C, K"],
}  # fmt: skip


def _digits(chance: random.Random, count: int) -> str:
    return "".join(chance.choice(string.digits) for _ in range(count))


def _letters(chance: random.Random, count: int, of: str = string.ascii_letters + string.digits) -> str:
    return "".join(chance.choice(of) for _ in range(count))


def _until(form: Callable[[], str], module: str) -> str:
    """Draw until the check digits are right."""
    from importlib import import_module

    valid = import_module(f"stdnum.{module}").is_valid
    while not valid(text := form()):
        pass
    return text


def email(chance: random.Random) -> str:
    name = chance.choice(["anna", "j.smith", "mueller_42", "lee+news", "o'brien", "x", "Karl.Otto"])
    host = chance.choice(["gmail.com", "mail.uni-bonn.de", "acme.co.uk", "my-shop.io", "a1.museum"])
    return f"{name}@{host}"


def phone(chance: random.Random) -> str:
    area, exchange = chance.randint(201, 989), chance.randint(200, 999)
    forms = [
        f"({area}) {exchange}-{_digits(chance, 4)}", f"{area}-{exchange}-{_digits(chance, 4)}",
        f"{area}.{exchange}.{_digits(chance, 4)}", f"+1 {area} {exchange} {_digits(chance, 4)}",
        f"+49 30 {chance.randint(100000, 9999999)}", f"+44 20 7{_digits(chance, 3)} {_digits(chance, 4)}",
        f"+33 6 {' '.join(_digits(chance, 2) for _ in range(4))}", f"+86 138 {_digits(chance, 4)} {_digits(chance, 4)}",
        f"phone: 0{_digits(chance, 2)} {_digits(chance, 7)}", f"+{chance.choice(['91', '55', '81'])}{_digits(chance, 10)}",
    ]  # fmt: skip
    return chance.choice(forms)


def ip(chance: random.Random) -> str:
    if chance.random() < 0.3:
        return (
            f"2a02:{_letters(chance, 4, 'abcdef123456')}:{_letters(chance, 3, 'abcdef123456')}::{chance.randint(1, 99)}"
        )
    first = chance.choice([5, 8, 23, 46, 78, 91, 142, 185, 203, 217])
    return f"{first}.{chance.randint(1, 250) if first != 203 else 5}.{chance.randint(0, 255)}.{chance.randint(1, 254)}"


def card(chance: random.Random) -> str:
    start, length = chance.choice([("4", 16), ("51", 16), ("2223", 16), ("34", 15), ("6011", 16), ("36", 14)])
    body = start + _digits(chance, length - len(start) - 1)
    digits = body + luhn.calc_check_digit(body)
    if length != 16 or chance.random() < 0.4:
        return digits
    return chance.choice([" ", "-"]).join(digits[i : i + 4] for i in range(0, 16, 4))


def iban(chance: random.Random) -> str:
    def form() -> str:
        country = chance.choice(["DE", "NL", "GB", "AT", "CH"])
        body = {"DE": _digits(chance, 18), "AT": _digits(chance, 16), "CH": _digits(chance, 17)}.get(country)
        body = body or (chance.choice(["ABNA", "INGB", "BARC"]) + _digits(chance, 10 if country == "NL" else 14))
        number = "".join(str(int(letter, 36)) for letter in f"{body}{country}00")
        return f"{country}{98 - int(number) % 97:02d}{body}"

    text = _until(form, "iban")
    return text if chance.random() < 0.5 else " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def ssn(chance: random.Random) -> str:
    return _until(
        lambda: f"{chance.randint(1, 899):03d}-{chance.randint(1, 99):02d}-{chance.randint(1, 9999):04d}", "us.ssn"
    )


def national_id(chance: random.Random) -> str:
    def date() -> str:
        return f"{chance.randint(50, 99)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"

    forms: list[tuple[str, str, Callable[[], str]]] = [
        ("br.cpf", "", lambda: f"{_digits(chance, 3)}.{_digits(chance, 3)}.{_digits(chance, 3)}-{_digits(chance, 2)}"),
        ("es.dni", "", lambda: f"{_digits(chance, 8)}{chance.choice('TRWAGMYFPDXBNJZSQVHLCKE')}"),
        ("be.nn", "", lambda: f"{date()[:2]}.{date()[2:4]}.{date()[4:]}-{_digits(chance, 3)}.{_digits(chance, 2)}"),
        ("cl.rut", "", lambda: f"{chance.randint(5, 25)}.{_digits(chance, 3)}.{_digits(chance, 3)}-{chance.choice('0123456789K')}"),
        ("se.personnummer", "", lambda: f"{date()}-{_digits(chance, 4)}"),
        ("cn.ric", "", lambda: f"110105{19}{date()}{_digits(chance, 3)}{chance.choice('0123456789X')}"),
        ("fr.nir", "", lambda: f"1{chance.randint(50, 99)}{chance.randint(1, 12):02d}75{_digits(chance, 3)}{_digits(chance, 3)}{_digits(chance, 2)}"),
        ("nl.bsn", "BSN ", lambda: _digits(chance, 9)),
        ("pl.pesel", "PESEL: ", lambda: f"{date()}{_digits(chance, 5)}"),
        ("in_.aadhaar", "Aadhaar number ", lambda: f"{chance.randint(2, 9)}{_digits(chance, 3)} {_digits(chance, 4)} {_digits(chance, 4)}"),
        ("ca.sin", "SIN ", lambda: f"{chance.randint(1, 7)}{_digits(chance, 2)}-{_digits(chance, 3)}-{_digits(chance, 3)}"),
        ("gb.nhs", "NHS number ", lambda: f"{_digits(chance, 3)} {_digits(chance, 3)} {_digits(chance, 4)}"),
    ]  # fmt: skip
    module, name, form = chance.choice(forms)
    return name + _until(form, module)


def secret(chance: random.Random) -> str:
    hexadecimal = "0123456789abcdef"
    forms = [
        f"AKIA{_letters(chance, 16, string.ascii_uppercase + '234567')}", f"ghp_{_letters(chance, 36)}",
        f"sk-proj-{_letters(chance, 48)}", f"sk-ant-api03-{_letters(chance, 60)}", f"hf_{_letters(chance, 34)}",
        f"xoxb-{_digits(chance, 12)}-{_letters(chance, 24)}", f"sk_live_{_letters(chance, 24)}",
        f"AIza{_letters(chance, 35)}", f"glpat-{_letters(chance, 20)}", f"npm_{_letters(chance, 36)}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJ{_letters(chance, 30)}.{_letters(chance, 43)}", f"password: {_letters(chance, 18)}",
        f"api_key={_letters(chance, 32, hexadecimal)}", f"Authorization: Bearer {_letters(chance, 40)}",
        f"client_secret = '{_letters(chance, 28)}'",
    ]  # fmt: skip
    return chance.choice(forms)


def private_key(chance: random.Random) -> str:
    kind = chance.choice(["RSA ", "EC ", "OPENSSH ", ""])
    body = "\n".join(
        _letters(chance, 64, string.ascii_letters + string.digits + "+/") for _ in range(chance.randint(2, 12))
    )
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


PERSONAL: dict[str, Callable[[random.Random], str]] = {
    "email": email, "phone": phone, "ip": ip, "card": card, "iban": iban, "ssn": ssn, "national_id": national_id,
    "secret": secret, "private_key": private_key,
}  # fmt: skip

"""Contract: no secret and no place of this machine leaves through `scrub`; ordinary text does not change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.runtime.scrub import HIDDEN, find_secrets, is_machine_path, scrub, scrub_path

# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "hf_" + "a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwX",
    "sk-" + "proj-abcdefghijklmnopqrstuv_1234",
    "gh" + "p_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github_" + "pat_11ABCDEFG0abcdefghijkl_mnop",
    "AK" + "IAIOSFODNN7EXAMPLE",
    "AI" + "zaSyA-abcdefghijklmnopqrstuvwxyz12345",
    "xox" + "b-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA " + "PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "token {} in words", 'x: "{}",', "https://hub/x?y={}", "/home/me/{}/x"])
def test_secrets_of_known_forms_go(secret, around):
    assert secret not in scrub(around.format(secret))
    assert secret[8:24] not in scrub(around.format(secret))
    assert find_secrets(around.format(secret))


@pytest.mark.parametrize(
    "text",
    ["api_key: Zq8wKd72mmP", "PASSWORD=Zq8wKd72mmP", "Authorization: Bearer Zq8wKd72mmP", '"secret": "Zq8wKd72mmP"',
     "my_access_token = 'Zq8wKd72mmP'", "postgres://joe:Zq8wKd72mmP@db/x", "https://h/f?X-Amz-Signature=Zq8wKd72mmP"],
)  # fmt: skip
def test_secrets_beside_a_telling_name_and_in_addresses_go(text):
    assert "Zq8wKd72mmP" not in scrub(text)


def test_values_of_variables_go(monkeypatch):
    monkeypatch.setenv("MY_CLUSTER_TOKEN", "plain words only")
    assert scrub("it said plain words only.") == f"it said {HIDDEN}."
    assert find_secrets("it said plain words only.") == ["the value of the environment variable MY_CLUSTER_TOKEN"]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/home/joe/data/train.jsonl", "train.jsonl"),
        ("see /mnt/x/y.bin, and more", "see y.bin, and more"),
        ("~/secret place/x.jsonl"[:8] + "/x.jsonl", "x.jsonl"),
        (r"C:\Users\joe\x.json", "x.json"),
        ("file:///srv/a/b.txt", "b.txt"),
        ("/srv/", HIDDEN),
    ],
)
def test_paths_keep_their_last_part(text, shown):
    assert scrub(text) == shown


@pytest.mark.parametrize("text", ["/home/jane doe/my data/x.jsonl", "~/a b/x.jsonl", "../../jane doe/x.jsonl"])
def test_a_value_that_is_a_path_may_hold_spaces(text):
    assert scrub_path(text) == "x.jsonl"


@pytest.mark.parametrize(
    "text",
    ["HuggingFaceTB/SmolLM2-135M-Instruct", "runs/x/train.jsonl", "tokens: 12", "a/b and 1/2", "password", "1e-4/2",
     "https://huggingface.co/org/name", "the secret of good rows", "api_key_env",
     "max_tokens: 123456"],
)  # fmt: skip
def test_ordinary_text_stays(text):
    assert scrub(text) == text
    assert not find_secrets(text)
    assert not is_machine_path(text)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_scrubbing_again_changes_nothing_more(text):
    once = scrub(text)
    assert scrub(once) == once or len(scrub(once)) <= len(once)

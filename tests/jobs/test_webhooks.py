"""Contract: the official client accepts what is sent; each end is told at least once, to configured addresses alone."""

import base64
import http.server
import json
import threading

import pytest

from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store
from luthier.jobs.webhooks import DELAYS, KINDS, WebhookSettings, deliver_due, signature, spread

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


class Clock:
    def __init__(self):
        import time

        self.at = time.time()

    def __call__(self):
        return self.at


class Receiver:
    """A server that keeps what it got and answers as told."""

    def __init__(self):
        self.got, self.answers, self.location = [], [], None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((self.path, dict(self.headers.items()), body))
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                if outer.location:
                    self.send_header("location", outer.location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    one = Receiver()
    yield one
    one.close()


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "home", clock=Clock())


def _job(store, number=1):
    id_ = f"ftjob-{number}"
    file = store.add_file("me", "rows.jsonl", "fine-tune", [b"x"])
    store.create_job(JobRecord(
        id=id_, owner="me", created_at=0, model="m", base="b", method={"type": "supervised"}, hyperparameters={},
        training_file=file.id, seed=number, run_name=id_, metadata={"url": "http://169.254.169.254/latest"},
    ))  # fmt: skip
    return id_


def _end(store, id_, to):
    store.move(id_, to="queued")
    if to == "succeeded":
        store.move(id_, to="running")
    store.move(id_, to=to, **({"error": {"code": "x", "message": "y", "param": None}} if to == "failed" else {}))


def _settings(receiver, **changes):
    return [WebhookSettings(**{"url": receiver.url, "secret": SECRET, **changes})]


@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled"])
def test_the_official_client_unwraps_it(store, receiver, kind):
    from openai import OpenAI

    id_ = _job(store)
    _end(store, id_, kind)
    settings = _settings(receiver)
    assert spread(store, settings) == 1 and deliver_due(store, settings) == 1
    path, headers, body = receiver.got[0]
    assert path == "/hook" and headers["Content-Type"] == "application/json"
    client = OpenAI(api_key="x", webhook_secret=SECRET)
    event = client.webhooks.unwrap(body, headers)
    assert type(event).__name__ == f"FineTuningJob{kind.capitalize()}WebhookEvent"
    assert (event.type, event.data.id, event.object) == (f"fine_tuning.job.{kind}", id_, "event")
    assert event.id == {key.lower(): value for key, value in headers.items()}["webhook-id"] and event.id.startswith(
        "evt_"
    )


def test_a_changed_body_or_another_secret_is_refused(store, receiver):
    from openai import InvalidWebhookSignatureError, OpenAI

    _end(store, _job(store), "succeeded")
    settings = _settings(receiver)
    spread(store, settings)
    deliver_due(store, settings)
    _, headers, body = receiver.got[0]
    client = OpenAI(api_key="x")
    client.webhooks.unwrap(body, headers, secret=SECRET)
    for changed, secret in ((body.replace(b"succeeded", b"cancelled"), SECRET), (body, "whsec_" + "A" * 24)):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(changed, headers, secret=secret)


def test_the_signature_is_that_of_the_specification():
    """The example of standardwebhooks.com."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    got = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert got == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_failed_delivery_is_tried_again_later_under_the_same_id_also_after_a_restart(store, receiver, tmp_path):
    _end(store, _job(store), "succeeded")
    settings = _settings(receiver)
    receiver.answers = [500, 302, 200]
    receiver.location = receiver.url + "/elsewhere"
    spread(store, settings)
    assert deliver_due(store, settings) == 0
    assert deliver_due(store, settings) == 0 and len(receiver.got) == 1, "not before its time"
    store.clock.at += DELAYS[0] + 1
    assert deliver_due(store, settings) == 0, "a redirect is no success"
    assert [path for path, *_ in receiver.got] == ["/hook", "/hook"], "and is not followed"
    receiver.location = None
    again = Store.open(tmp_path / "home", clock=store.clock)
    store.clock.at += DELAYS[1] + 1
    spread(again, settings)
    assert deliver_due(again, settings) == 1
    assert len({json.loads(body)["id"] for _, _, body in receiver.got}) == 1
    assert deliver_due(again, settings) == 0 and len(receiver.got) == 3


def test_it_is_given_up_after_the_last_delay_or_when_nobody_wants_it(store, receiver):
    _end(store, _job(store), "succeeded")
    _end(store, _job(store, 2), "succeeded")
    settings = _settings(receiver)
    receiver.answers = [410, *[503] * 50]
    spread(store, settings)
    for _ in range(len(DELAYS) + 5):
        deliver_due(store, settings)
        store.clock.at += max(DELAYS) + 1
    assert len(receiver.got) == 1 + len(DELAYS) + 1
    with store.database.reading() as connection:
        states = [row["state"] for row in connection.execute("SELECT state FROM deliveries")]
    assert states == ["given_up", "given_up"]


def test_nobody_listening_is_no_error(store, receiver):
    _end(store, _job(store), "succeeded")
    settings = [WebhookSettings(url="http://127.0.0.1:1/x", secret=SECRET)]
    spread(store, settings)
    assert deliver_due(store, settings) == 0


def test_only_addresses_of_the_configuration_are_called(store, receiver):
    """F18: an address in a job goes nowhere, nor does one that is no longer configured."""
    _end(store, _job(store), "succeeded")
    settings = _settings(receiver)
    spread(store, settings)
    other = [WebhookSettings(url=receiver.url + "/new", secret=SECRET)]
    deliver_due(store, other)
    assert receiver.got == []


def test_a_notice_is_in_the_transaction_that_ends_the_job(store):
    id_ = _job(store)
    _end(store, id_, "succeeded")
    with store.database.reading() as connection:
        assert [row["type"] for row in connection.execute("SELECT type FROM notices")] == ["fine_tuning.job.succeeded"]
    other = _job(store, 2)
    with pytest.raises(RuntimeError), store.database.writing() as connection:
        connection.execute("UPDATE jobs SET status = 'failed', finished_at = 1 WHERE id = ?", (other,))
        raise RuntimeError
    with store.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM notices").fetchone()[0] == 1


def test_events_that_are_not_asked_for_are_not_told(store, receiver):
    settings = _settings(receiver, events=["fine_tuning.job.failed"])
    _end(store, _job(store), "succeeded")
    assert spread(store, settings) == 0
    assert len(KINDS) == 3


@pytest.mark.parametrize("change", [
    {"url": "file:///etc/passwd"}, {"url": "ftp://host/x"}, {"url": "http://user:pw@host/"}, {"url": "http://"},
    {"secret": "whsec_"}, {"secret": "plain"}, {"secret": "whsec_%%%"}, {"events": ["batch.completed"]}, {"x": 1},
])  # fmt: skip
def test_settings_that_cannot_be_right(change):
    with pytest.raises(ValueError) as caught:
        WebhookSettings(**{"url": "https://host/x", "secret": SECRET, **change})
    assert caught.value.error_count() == 1

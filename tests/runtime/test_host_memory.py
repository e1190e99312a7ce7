"""Free memory of a container: its limit, less what is held, files aside."""

from luthier.runtime.host_memory import free_memory_bytes

MIB = 2**20


def container(folder, *, limit, current, stat=""):
    for name, text in (("memory.max", limit), ("memory.current", current), ("memory.stat", stat)):
        (folder / name).write_text(f"{text}\n")
    return folder


def test_pages_of_files_are_free(tmp_path):
    """A run that wrote a checkpoint and starts again finds the memory that it had."""
    stat = f"anon {20 * MIB}\nfile {71 * MIB}\nshmem {1 * MIB}\ninactive_file {40 * MIB}\nactive_file {30 * MIB}"
    there = container(tmp_path, limit=100 * MIB, current=91 * MIB, stat=stat)
    assert free_memory_bytes(there) == (100 - 91 + 40 + 30) * MIB


def test_what_is_held_is_not(tmp_path):
    assert free_memory_bytes(container(tmp_path, limit=100 * MIB, current=90 * MIB)) == 10 * MIB
    assert free_memory_bytes(container(tmp_path, limit=100 * MIB, current=110 * MIB)) == 0


def test_without_a_limit_it_is_the_hosts(tmp_path):
    assert free_memory_bytes(container(tmp_path, limit="max", current=90 * MIB)) > 10 * MIB
    assert free_memory_bytes(tmp_path / "no such folder") > 10 * MIB

"""Counts in a module global, which is fresh in each run, and in the cache, which is not."""

seen = []


def process_writes(influxdb3_local, table_batches, args=None):
    seen.append(1)
    cache = influxdb3_local.cache
    counts = cache.get("counts")
    if counts is None:
        counts = []
        cache.put("counts", counts)
    counts.append(1)
    assert cache.get("counts") is counts
    cache.put("gone", 1, ttl=0)
    assert cache.get("gone", "default") == "default" and cache.delete("gone") is False
    cache.put("shared", 1, use_global=True)
    assert cache.get("shared") is None and cache.get("shared", use_global=True) == 1
    try:
        cache.put("bad", 1, ttl=-1)
    except ValueError as error:
        assert "negative" in str(error)
    influxdb3_local.info(seen, len(counts), __name__)

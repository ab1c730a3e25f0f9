"""The assignment of rows to the two versions of a rollout: a hash of a key and a salt, without any stored state.

A key has one position between 0 and 1, in every worker and after every restart. The challenger answers the keys below
its weight, so a key that it answers stays with it while the weight grows.
"""

from hashlib import blake2b

_POSITIONS = float(2**64)


def key_position(key: str, salt: str) -> float:
    """The position of a key, uniform in [0, 1) over keys.

    Args:
        key: e.g. the id of a customer.
        salt: of the rollout, at most 16 bytes; positions of the same key are independent between salts.

    Example:
        >>> key_position("customer 7", "a1") == key_position("customer 7", "a1")
        True
    """
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.encode()).digest()
    return int.from_bytes(digest, "big") / _POSITIONS

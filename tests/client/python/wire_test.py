"""How vectors are cut into chunks, and rounded."""
import unittest

import numpy as np

from hfopt.wire import CHUNK_BYTES, ChunkSize, chunks_of, from_bfloat16, to_bfloat16

LEASE = 10.0


def longest_gap(size, total, bytes_per_second):
    """The longest time between the arrivals of two messages, of `total` bytes that go over a link."""
    longest, sent = 0.0, 0
    while sent < total:
        chunk = min(size.bytes, total - sent)
        size.sent(chunk, chunk / bytes_per_second)
        longest, sent = max(longest, chunk / bytes_per_second), sent + chunk
    return longest


class Bfloat16Test(unittest.TestCase):
    def test_rounds_to_the_nearest_and_ties_to_even(self):
        """1 + k / 128 are the neighbours of 1."""
        numbers = [1 + 1 / 256, 1 + 3 / 256, 1 + 1.01 / 256, -1 - 1 / 256, np.pi, 1e-40, 3.4028235e38, np.inf, -np.inf]
        expected = [1, 1 + 2 / 128, 1 + 1 / 128, -1, 3.140625, 2.0**-133, np.inf, np.inf, -np.inf]
        np.testing.assert_array_equal(from_bfloat16(to_bfloat16(np.array(numbers, np.float32))), np.float32(expected))

    def test_keeps_what_is_no_number(self):
        for bits in (0x7FC00000, 0xFFFFFFFF, 0x7F800001):
            nan = np.array([bits], np.uint32).view(np.float32)
            self.assertTrue(np.isnan(from_bfloat16(to_bfloat16(nan)))[0], hex(bits))

    def test_rounds_by_less_than_a_part_in_256(self):
        numbers = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
        rounded = from_bfloat16(to_bfloat16(numbers))
        self.assertLessEqual(np.abs(rounded / numbers - 1).max(), 1 / 256)
        np.testing.assert_array_equal(rounded.view(np.uint32) & 0xFFFF, 0)
        np.testing.assert_array_equal(from_bfloat16(to_bfloat16(rounded)), rounded)


class ChunkSizeTest(unittest.TestCase):
    def test_grows_to_the_cheapest_on_a_fast_link(self):
        size = ChunkSize(LEASE)
        longest_gap(size, 3 << 20, 100 << 20)
        self.assertEqual(size.bytes, CHUNK_BYTES)

    def test_is_heard_within_a_third_of_the_lease_on_a_slow_link(self):
        for rate in (5e3, 2e4, 1e5, 5e5):
            self.assertLessEqual(longest_gap(ChunkSize(LEASE), 4 << 20, rate), LEASE / 3, rate)

    def test_follows_a_link_that_becomes_slow(self):
        size = ChunkSize(LEASE)
        longest_gap(size, 3 << 20, 100 << 20)
        longest_gap(size, 4 << 20, 2e4)
        self.assertLessEqual(longest_gap(size, 1 << 20, 2e4), LEASE / 3)

    def test_does_not_grow_by_the_short_ends_of_vectors(self):
        size = ChunkSize(LEASE)
        for _ in range(100):
            size.sent(100, 0.0)
        self.assertEqual(size.bytes, ChunkSize.SMALLEST)


class ChunksTest(unittest.TestCase):
    def test_are_the_vector_whatever_their_size(self):
        vector = np.arange(100_000.0)
        for size in (None, ChunkSize(LEASE)):
            chunks = list(chunks_of(vector, size))
            self.assertEqual([offset for offset, _ in chunks], list(np.cumsum([0] + [len(c) for _, c in chunks[:-1]])))
            self.assertEqual(b"".join(chunk for _, chunk in chunks), vector.tobytes())

    def test_of_nothing_are_none(self):
        self.assertEqual(list(chunks_of(np.empty(0), ChunkSize(LEASE))), [])


if __name__ == "__main__":
    unittest.main()

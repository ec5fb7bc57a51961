"""The arithmetic behind the figures, on histories made by hand."""

import unittest

from compare import median, spread, speedup, target_of
from training import Point, Training, converged_at, points_of


def history(*losses, seconds=1.0, whole=()):
    points = [Point(seconds * (k + 1), 2.0 * (k + 1), 10 * (k + 1), loss, not whole or whole[k],
                    accepted=k == 0 or loss != losses[k - 1])
              for k, loss in enumerate(losses)]
    return Training("t", 1, points, {})


class ConvergedAt(unittest.TestCase):
    def test_is_where_three_iterations_gave_less_than_a_thousandth(self):
        points = history(4, 2, 1, 0.9998, 0.9996, 0.9994, 0.5).points
        self.assertEqual(converged_at(points).loss, 0.9994)

    def test_is_the_last_point_while_the_loss_falls(self):
        self.assertEqual(converged_at(history(4, 3, 2, 1).points).loss, 1)

    def test_rejections_are_no_convergence(self):
        self.assertEqual(converged_at(history(4, 3, 3, 3, 3, 2, 1).points).loss, 1)


class PointsOf(unittest.TestCase):
    def points(self, *held_out_examples):
        iterations = [{"seconds": {"total": 2.0}, "cost": {"example_passes": 3.0 * k, "exchanges": str(k)}, "held_out_loss": 5.0 - k,
                       "held_out_examples": str(n), "accepted": True} for k, n in enumerate(held_out_examples, 1)]
        return points_of({"iterations": iterations, "run": {"model": {"held_out_examples": "100"}}, "evaluation": {"held_out_loss": 3.5}})

    def test_losses_on_a_part_are_not_whole_even_where_all_are(self):
        self.assertEqual([(p.loss, p.whole) for p in self.points(50, 50)], [(4, False), (3, False), (3.5, True)])
        self.assertEqual(self.points(50, 50)[-1].seconds, 4)

    def test_a_last_loss_on_all_is_the_end(self):
        self.assertEqual([(p.loss, p.whole) for p in self.points(50, 100)], [(4, False), (3, True)])


class Speedups(unittest.TestCase):
    def test_compare_the_first_time_at_the_loss_where_the_baseline_converged(self):
        result = speedup(history(4, 3, 2), history(4, 2, 1, seconds=0.5))
        self.assertEqual((result.target, result.baseline_seconds, result.seconds), (2, 3, 1))
        self.assertEqual((result.wall, result.work), (3, 6 / 4))

    def test_to_the_end_compare_at_the_best_loss_of_the_baseline(self):
        result = speedup(history(4, 3.999, 3.998, 3.997, 2, 1, 1.5), history(4, 1, seconds=1.5), to_the_end=True)
        self.assertEqual((result.target, result.baseline_seconds, result.seconds), (1, 6, 3))

    def test_a_loss_on_a_part_of_the_held_out_data_does_not_count(self):
        result = speedup(history(4, 2), history(3, 1, 2, whole=(False, False, True)))
        self.assertEqual(result.seconds, 3)

    def test_not_getting_there_is_no_number(self):
        self.assertIsNone(speedup(history(4, 1), history(4, 2)).wall)

    def test_target_is_the_best_loss_until_convergence(self):
        self.assertEqual(target_of(history(4, 2, 2.001, 2.002, 2.001, 2.001, 1))[0], 2)


class Medians(unittest.TestCase):
    def test_failures_count_as_slowest(self):
        self.assertEqual(median([3, None, 5]), 3)
        self.assertEqual(median([2]), 2)
        self.assertEqual(median([3, None, 5], failure=float("inf")), 5)

    def test_no_median_when_most_failed(self):
        self.assertIsNone(median([3, None, None]))
        self.assertIsNone(median([None]))

    def test_spread_is_of_what_is_known(self):
        self.assertEqual(spread([3, None, 5]), (3, 5))
        self.assertIsNone(spread([None]))


if __name__ == "__main__":
    unittest.main()

"""TLS, certificates and tokens, with the real server and what `hfopt certs` and `hfopt token` make for it."""
import os
import pathlib
import subprocess
import tempfile
import unittest
from unittest import mock

import digits
import hfopt

PROGRAM, SERVER = os.environ["HFOPT_PROGRAM"], os.environ["HFOPT_SERVER"]
DIGITS = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/models/digits"


class CredentialsOfTheProgramsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.model = digits.DigitsModel(DIGITS)

    def server(self, *options):
        """The address of a server, which ends with the test."""
        process = subprocess.Popen([SERVER, "--address", "127.0.0.1:0", "--state-dir", f"{self.folder}/state", *options],
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return next(line.rpartition("listening on ")[2].strip() for line in process.stderr if "listening on " in line)

    def token(self, role):
        return subprocess.run([PROGRAM, "token", f"{role}-name", "--role", role, "--tokens", f"{self.folder}/tokens"],
                              check=True, capture_output=True, text=True).stdout.strip()

    def fit(self, address, security=hfopt.Security()):
        return hfopt.fit(self.model, server=address, security=security, max_iterations=1, progress=False)

    def test_trains_over_mutual_tls(self):
        certs = f"{self.folder}/certs"
        subprocess.run([PROGRAM, "certs", "--dir", certs], check=True, capture_output=True)
        address = self.server("--tls-cert", f"{certs}/server.pem", "--tls-key", f"{certs}/server.key", "--tls-client-ca", f"{certs}/ca.pem")

        def of(role):
            return hfopt.Security(ca_file=f"{certs}/ca.pem", cert_file=f"{certs}/{role}.pem", key_file=f"{certs}/{role}.key")
        self.assertEqual(self.fit(address, of("operator")).reason, "iteration_budget")
        with self.assertRaises(hfopt.Error) as refused:
            self.fit(address, of("worker"))
        self.assertEqual(refused.exception.code, "PERMISSION_DENIED")

    def test_trains_with_a_token(self):
        operator, reader = self.token("operator"), self.token("reader")
        address = self.server("--tokens", f"{self.folder}/tokens")
        self.assertEqual(self.fit(address, hfopt.Security(token=operator)).reason, "iteration_budget")
        with mock.patch.dict(os.environ, HFOPT_TOKEN=operator):
            self.assertEqual(self.fit(address, hfopt.Security.from_environment()).reason, "iteration_budget")
        file = pathlib.Path(self.folder) / "token"
        file.write_text(operator + "\n")
        self.assertEqual(self.fit(address, hfopt.Security(token_file=str(file))).reason, "iteration_budget")
        with self.assertRaises(hfopt.Error) as refused:
            self.fit(address, hfopt.Security(token=reader))
        self.assertIn("\"reader-name\" has the role reader", str(refused.exception))
        with self.assertRaises(hfopt.Error) as unknown:
            self.fit(address)
        self.assertEqual(unknown.exception.code, "UNAUTHENTICATED")

    def test_the_environment_is_not_for_a_private_server(self):
        with mock.patch.dict(os.environ, HFOPT_TOKEN="secret", HFOPT_CA="/no/such/file", HFOPT_TOKENS="/no/such/file"):
            self.assertEqual(hfopt.fit(self.model, max_iterations=1, progress=False).reason, "iteration_budget")

    def test_a_token_is_not_shown(self):
        self.assertNotIn("secret", repr(hfopt.Security(token="secret")))

    def test_a_name_that_begins_like_loopback_is_another_machine(self):
        for address in "127.example.org:1", "127.0.0.1.example.org:1", "localhost.example.org:1":
            with self.assertRaisesRegex(hfopt.Error, "plaintext"):
                hfopt.Security(token="secret").check(address)
        for address in "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/tmp/s":
            hfopt.Security(token="secret").check(address)


if __name__ == "__main__":
    unittest.main()

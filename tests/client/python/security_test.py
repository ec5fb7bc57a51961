"""TLS, client certificates and tokens, against a server of gRPC for Python that demands them."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
from concurrent import futures

import grpc

import digits
import hfopt
from hfopt.security import is_local, with_port
from hfopt.v1 import evaluation_service_pb2_grpc, run_pb2, run_service_pb2, run_service_pb2_grpc, vector_pb2
from hfopt.v1.evaluation_service_pb2 import Finished, SessionResponse, Welcome

DIGITS = pathlib.Path(os.environ["HFOPT_SOURCE_FOLDER"]) / "client/models/digits"
TOKEN = "open sesame"


def demand_token(context):
    if ("authorization", f"Bearer {TOKEN}") not in [(m.key, m.value) for m in context.invocation_metadata()]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is wanted")


class Sessions(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    def Session(self, requests, context):
        demand_token(context)
        next(requests)
        double = vector_pb2.ELEMENT_TYPE_FLOAT64
        yield SessionResponse(welcome=Welcome(protocol_version=1, element_type=double, shards=1, lease_seconds=10))
        yield SessionResponse(finished=Finished(reason="CONVERGED"))


class Runs(run_service_pb2_grpc.RunServiceServicer):
    def GetRun(self, request, context):
        demand_token(context)
        return run_service_pb2.GetRunResponse(run=run_pb2.Run(name=request.name))


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed: TLS is not tested")
class SecurityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        for who in "server", "client":  # each its own CA
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                            "-nodes", "-keyout", f"{folder.name}/{who}.key", "-out", f"{folder.name}/{who}.pem",
                            "-subj", f"/CN={who}", "-addext", "subjectAltName=DNS:localhost", "-days", "2"],
                           check=True, capture_output=True)
        pathlib.Path(f"{folder.name}/token").write_text(TOKEN + "\n")
        key, chain, clients = (pathlib.Path(f"{folder.name}/{name}").read_bytes()
                               for name in ("server.key", "server.pem", "client.pem"))
        cls.server = grpc.server(futures.ThreadPoolExecutor(4))
        cls.addClassCleanup(lambda: cls.server.stop(None).wait())
        evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server(Sessions(), cls.server)
        run_service_pb2_grpc.add_RunServiceServicer_to_server(Runs(), cls.server)
        credentials = grpc.ssl_server_credentials([(key, chain)], clients, require_client_auth=True)
        cls.address = f"localhost:{cls.server.add_secure_port('localhost:0', credentials)}"
        cls.plain = f"127.0.0.1:{cls.server.add_insecure_port('127.0.0.1:0')}"
        cls.server.start()
        cls.known = {"ca_file": f"{folder.name}/server.pem", "cert_file": f"{folder.name}/client.pem",
                     "key_file": f"{folder.name}/client.key"}

    def work(self, address, security):
        return hfopt.serve(digits.DigitsModel(DIGITS), "digits", address, "py-1", security=security, give_up_after=0.2)

    def test_certificates_and_token(self):
        for token in {"token": TOKEN}, {"token_file": f"{self.folder}/token"}:
            security = hfopt.Security(**self.known, **token)
            with hfopt.RunClient(self.address, security=security) as client:
                self.assertEqual(client.get("mine").name, "runs/mine")
            self.assertEqual(self.work(self.address, security).reason, "CONVERGED")

    def test_a_token_on_this_machine_needs_no_tls(self):
        security = hfopt.Security(token=TOKEN)
        with hfopt.RunClient(self.plain, security=security) as client:
            self.assertEqual(client.get("mine").name, "runs/mine")
        self.assertEqual(self.work(self.plain, security).reason, "CONVERGED")

    def test_refusals(self):
        for security in hfopt.Security(**self.known), hfopt.Security(**self.known, token="guessed"):
            with self.assertRaisesRegex(hfopt.Error, "a token is wanted") as refused, \
                    hfopt.RunClient(self.address, security=security) as client:
                client.get("mine")
            self.assertEqual(refused.exception.code, "UNAUTHENTICATED")
            with self.assertRaisesRegex(hfopt.Error, "a token is wanted"):
                self.work(self.address, security)
        for security in (hfopt.Security(), hfopt.Security(ca_file=self.known["ca_file"]),
                         hfopt.Security(**{**self.known, "ca_file": self.known["cert_file"]})):
            with self.assertRaises(hfopt.Error) as refused, hfopt.RunClient(self.address, security=security) as client:
                client.get("mine")
            self.assertEqual(refused.exception.code, "UNAVAILABLE")

    def test_says_what_is_wrong(self):
        for security, message in (
            (hfopt.Security(cert_file="c"), "cert_file and key_file are given both or not at all"),
            (hfopt.Security(cert_file="c", key_file="k"), "a client certificate takes TLS"),
            (hfopt.Security(token="t"), "a token would go to far:1 in plaintext"),
            (hfopt.Security(ca_file="/nowhere"), "/nowhere cannot be read: No such file"),
        ):
            with self.subTest(message), self.assertRaisesRegex(hfopt.Error, message):
                hfopt.RunClient("far:1", security=security).list()
        here, elsewhere = ("unix:/a", "127.0.0.1:7", "dns:///localhost:7", "[::1]:7"), ("far:7", "127a:7")
        self.assertEqual([is_local(a) for a in here + elsewhere], [True] * 4 + [False] * 2)

    def test_the_port_is_that_of_the_server(self):
        for address, complete in (("localhost", "localhost:7447"), ("far:1", "far:1"), ("10.0.0.1", "10.0.0.1:7447"),
                                  ("[::1]", "[::1]:7447"), ("::1", "[::1]:7447"), ("[::1]:2", "[::1]:2"),
                                  ("dns:///far", "dns:///far:7447"), ("dns:far:3", "dns:far:3"), ("unix:/a", "unix:/a"),
                                  ("xds:///far", "xds:///far")):
            with self.subTest(address):
                self.assertEqual(with_port(address), complete)
        for address in "", "far:", ":7447", "far:http", "dns:///", "[::1]:":
            with self.subTest(address), self.assertRaisesRegex(
                    hfopt.Error, re.escape(f'server is "{address}"; give HOST, HOST:PORT or unix:PATH')):
                with_port(address)


if __name__ == "__main__":
    unittest.main()

"""All rows by torchidl's CVXSolver or ADMMSolver: `python torchidl_rows.py FOLDER INPUT OUTPUT`.

A script of its own, so that it runs in an environment without simjax. For the contract of FOLDER, INPUT and OUTPUT see
`benchmarks.peers.environments.run_script`.
"""

import importlib
import importlib.metadata
import json
import resource
import sys
import time

import numpy as np


def main(folder, input_file, output_file):
    with np.load(input_file, allow_pickle=False) as arrays:
        settings, chosen = json.loads(str(arrays["settings"])), arrays["chosen"]
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    design, targets = (np.load(f"{folder}/{name}.npy", allow_pickle=False) for name in ("design", "targets"))
    n, inner = settings["n"], settings["inner"]
    # Samples are columns there, and CVXSolver reads X and U as float32 whatever they are.
    states = np.ascontiguousarray(design[:, :n].T.astype(np.float32))
    inputs = np.ascontiguousarray(design[:, n:].T.astype(np.float32))
    precision = np.float64 if settings["solver"] == "CVXSolver" else np.float32
    upper = np.ascontiguousarray(targets.T[chosen[chosen < inner]].astype(precision))
    lower = np.ascontiguousarray(targets.T[chosen[chosen >= inner]].astype(precision))

    torch = importlib.import_module("torch")
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)  # ADMMSolver starts at random weights
    solvers = importlib.import_module("torchidl.sim.solvers")
    solver = getattr(solvers, settings["solver"])(**settings["arguments"])
    kappa = settings["kappa"]
    config = {
        "activation_fn": torch.relu,
        "device": "cpu",
        "atol": 1e-6,
        "kappa": float("inf") if kappa is None else kappa,
    }
    began = time.perf_counter()
    A, B, C, D = solver.solve(states, inputs, upper, lower, config)
    seconds = time.perf_counter() - began

    weights = np.zeros((len(chosen), design.shape[1]))
    for rows, left, right in ((chosen < inner, A, B), (chosen >= inner, C, D)):
        if rows.any():
            weights[rows] = np.concatenate([_dense(left), _dense(right)], axis=1)
    installed = importlib.import_module("cvxpy").installed_solvers()
    packages = ("torchidl", "torch", "cvxpy", "clarabel", "mosek", "numpy")
    facts = {
        "seconds": seconds,
        "cvxpy_solvers": installed,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    np.savez(output_file, facts=json.dumps(facts), weights=weights)


def _dense(matrix):
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


if __name__ == "__main__":
    main(*sys.argv[1:])

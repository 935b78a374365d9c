"""Plain lassos row by row over processes, by one of four packages: `python lasso_rows.py FOLDER INPUT OUTPUT`.

A script of its own, so that it runs in an environment without simjax. For the contract of FOLDER, INPUT and OUTPUT see
`benchmarks.peers.environments.run_script`.
"""

import importlib
import importlib.metadata
import json
import multiprocessing
import sys
import time
import warnings

import numpy as np

_PACKAGES = {"scikit-learn": (), "celer": ("celer",), "skglm": ("skglm", "numba"), "adelie": ("adelie",)}
_worker: dict = {}  # what a process keeps from one row to the next


def _start(folder, settings):
    warnings.simplefilter("ignore")  # a row that stops short is judged by its certificate
    design = np.asfortranarray(np.load(f"{folder}/design.npy", allow_pickle=False))
    alpha = settings["alpha"] / (2.0 * design.shape[0] * settings["loss_weight"])
    make = _adelie if settings["solver"] == "adelie" else _estimator
    _worker["fit"] = make(design, alpha, settings)
    if settings["solver"] == "skglm":  # compiles when it first fits
        _worker["fit"](np.load(f"{folder}/targets.npy", allow_pickle=False)[:, 0].copy())


def _estimator(design, alpha, settings):
    """target → coefficients and iterations, by an estimator in scikit-learn's way."""
    module = {"scikit-learn": "sklearn.linear_model", "celer": "celer", "skglm": "skglm"}[settings["solver"]]
    estimator = importlib.import_module(module).Lasso(
        alpha=alpha, fit_intercept=False, tol=settings["tol"], max_iter=settings["max_iters"]
    )

    def fit(target):
        fitted = estimator.fit(design, target)
        return fitted.coef_.copy(), int(np.max(fitted.n_iter_))

    return fit


def _adelie(design, alpha, settings):
    """The same by adelie's path solver, asked for one point of the path."""
    adelie = importlib.import_module("adelie")

    def fit(target):
        state = adelie.grpnet(
            design,
            adelie.glm.gaussian(y=target),
            lmda_path=np.array([alpha]),
            intercept=False,
            early_exit=False,
            tol=settings["tol"],
            max_iters=settings["max_iters"],
            progress_bar=False,
        )
        return state.betas[-1].toarray().ravel(), 0  # it raises at its limit

    return fit


def _row(target):
    began = time.perf_counter()
    weights, iterations = _worker["fit"](target)
    return weights, iterations, time.perf_counter() - began


def _nothing(_):
    time.sleep(0.05)  # long enough that every process takes one


def main(folder, input_file, output_file):
    with np.load(input_file, allow_pickle=False) as arrays:
        settings, chosen = json.loads(str(arrays["settings"])), arrays["chosen"]
    targets = np.load(f"{folder}/targets.npy", allow_pickle=False).T[chosen]
    context = multiprocessing.get_context("spawn")
    with context.Pool(settings["workers"], _start, (folder, settings)) as pool:
        pool.map(_nothing, range(4 * settings["workers"]), chunksize=1)  # processes and modules are ready
        began = time.perf_counter()
        solved = pool.map(_row, list(targets), chunksize=1)
        seconds = time.perf_counter() - began
    packages = ["numpy", "scipy", "scikit-learn", *_PACKAGES[settings["solver"]]]
    facts = {"seconds": seconds, "versions": {name: importlib.metadata.version(name) for name in packages}}
    np.savez(
        output_file,
        facts=json.dumps(facts),
        weights=np.array([row[0] for row in solved]),
        iterations=np.array([row[1] for row in solved]),
        row_seconds=np.array([row[2] for row in solved]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

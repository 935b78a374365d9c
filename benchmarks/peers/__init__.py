"""Solvers to stand side by side: each takes a `Task` and returns a record, every row judged by simjax's certificate.

    simjax                  all rows at once, default solver and tolerance
    clarabel-residual       Clarabel row by row, min λ‖r‖² + h(w) with r = t − Φw
    clarabel-gram           Clarabel row by row, min λwᵀΦᵀΦw − 2λ(Φᵀt)ᵀw + h(w)
    mosek                   MOSEK row by row, residual form, where it is licensed
    torchidl-cvx            torchidl's CVXSolver (L1)
    torchidl-admm           torchidl's ADMMSolver (L1)
    scikit-learn, celer,    coordinate descent (L1 without a ball)
    skglm, adelie

`python -m benchmarks.peers` runs one of them on one problem in a process of its own; `benchmarks.sidebyside` does so
for many.
"""

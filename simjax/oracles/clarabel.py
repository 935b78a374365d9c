"""Clarabel as an oracle."""
from __future__ import annotations
import numpy as np
from scipy import sparse
import clarabel

def solve_raw(program, tol, **kw):
    G,h=program.matrix,program.offset
    cones=[];T=[];
    for c in program.cones:
        if c.kind=="zero": cones.append(clarabel.ZeroConeT(c.size)); T.append(sparse.eye_array(c.size))
        elif c.kind=="nonnegative": cones.append(clarabel.NonnegativeConeT(c.size)); T.append(sparse.eye_array(c.size))
        else:
            cones.append(clarabel.SecondOrderConeT(c.size))
            r=np.sqrt(.5); M=np.eye(c.size); M[:2,:2]=[[r,r],[r,-r]]; T.append(M)
    T=sparse.block_diag(T,format="csc")
    s=clarabel.DefaultSettings(); s.verbose=False
    s.tol_gap_abs=s.tol_gap_rel=s.tol_feas=tol
    s.max_threads=1
    for k,v in kw.items(): setattr(s,k,v)
    sol=clarabel.DefaultSolver(sparse.csc_matrix(sparse.triu(program.quadratic)),program.linear,sparse.csc_matrix(T@G),T@h,cones,s).solve()
    return sol, np.array(sol.x), T.T@np.array(sol.z)

"""Estimators in scikit-learn's way, every target certified; they need scikit-learn."""

from simjax._extras import needs

with needs("sklearn", "scikit-learn", "simjax.sklearn"):
    from simjax.sklearn.regressor import SparseRegressor
    from simjax.sklearn.regressor_cv import SparseRegressorCV

__all__ = ["SparseRegressor", "SparseRegressorCV"]

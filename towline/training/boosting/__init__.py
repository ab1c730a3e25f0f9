"""Boosting candidates: the histogram gradient boosting of scikit-learn, and LightGBM, XGBoost and CatBoost."""

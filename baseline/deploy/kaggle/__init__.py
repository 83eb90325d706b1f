"""Submissions to Kaggle competitions, and the offline bundle for kernels without internet access."""

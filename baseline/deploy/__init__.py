"""Take a trained model elsewhere: exported files, fastai, the Hugging Face Hub, a web server and Kaggle."""

"""The models' folders, each as its Hub repository holds it, and what writes and publishes them."""

"""Where the classifier's weights start from."""

"""SFCN: a lightweight fully convolutional network, trained on UK Biobank."""

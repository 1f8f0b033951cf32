"""Labelled images: downloaded, verified, parsed and split by class."""

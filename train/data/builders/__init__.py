"""Data sets that this project provides, as tensorflow-datasets builders."""

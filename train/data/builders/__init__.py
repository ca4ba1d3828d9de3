"""Data sets that this project brings along, as tensorflow-datasets builders."""

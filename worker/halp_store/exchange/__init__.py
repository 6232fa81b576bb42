"""Other formats: exports of a store, and imports of the published HDF5 files.

Importing this package costs nothing.
"""

"""The dashboard's room: pages and JSON over a run on the server and a store on the disk.

Reads both and changes neither; loads no torch. Importing this package costs nothing.
"""

"""The world room: scenes of coloured shapes, their pictures, and questions with one right answer.

`scene` draws, `questions` asks and knows what is true, `dataset` writes both down. Needs numpy and
pillow; no torch.
"""

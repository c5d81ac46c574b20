"""Read a digit in a picture: a photo, a scan or a drawing, of any size and colour.

from jaxmnist.pictures import load_reader

reader = load_reader("runs/accurate")  # or a file of weights
digit, probabilities, doubt, why, image = reader.read("photo.jpg")  # or a PIL image, an array
"""

from jaxmnist.pictures.predict import Reader, Reading, load_reader

__all__ = ["Reader", "Reading", "load_reader"]

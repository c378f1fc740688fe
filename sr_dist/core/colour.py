"""Facts about colour."""

LUMA = (0.299, 0.587, 0.114)  # what red, green and blue weigh in the brightness of ITU-R BT.601

"""Running a bundle: NumPy, OpenCV and tokenizers, and ONNX Runtime or TensorRT for the two graphs."""

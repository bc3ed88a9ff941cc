"""Line protocol: body, fast and careful path, and the names that a key stands for."""

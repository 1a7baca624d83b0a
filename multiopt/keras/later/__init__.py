"""The later optimizer API of Keras: that of tf_keras, of DTensor and of Keras 3."""

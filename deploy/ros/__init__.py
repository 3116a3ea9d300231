"""What a ROS 2 node does with pictures and sentences, without ROS: the node and talent-bag are thin shells over it."""

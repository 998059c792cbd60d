"""Generated gRPC stubs of the control plane; see proto/ and scripts/generate_proto.py."""

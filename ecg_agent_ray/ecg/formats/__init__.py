"""One module for each family of file formats; `ecg_agent_ray.ecg.reading` chooses among them."""

"""Files as sysfs of real machines has them, under a root of their own."""

from collections.abc import Mapping
from pathlib import Path

XEON = {
    "sys/class/powercap/intel-rapl/enabled": "1",
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "261903328850",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "dram",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "5000000",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "65712999613",
    "sys/class/powercap/intel-rapl:0:1/name": "core",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "77",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:1/name": "package-1",
    "sys/class/powercap/intel-rapl:1/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:2/name": "psys",
    "sys/class/powercap/intel-rapl:2/energy_uj": "3",
    "sys/class/powercap/intel-rapl:2/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "261903328850",
    "sys/class/powercap/intel-rapl-mmio:0/max_energy_range_uj": "262143328850",
}

ORIN_NANO = {
    "sys/class/hwmon/hwmon0/name": "tmp102",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5064",
    "sys/class/hwmon/hwmon1/curr1_input": "976",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "5064",
    "sys/class/hwmon/hwmon1/curr2_input": "112",
    "sys/class/hwmon/hwmon1/in3_label": "VDD_SOC",
    "sys/class/hwmon/hwmon1/in3_input": "5064",
    "sys/class/hwmon/hwmon1/curr3_input": "288",
    "sys/class/hwmon/hwmon1/in4_input": "4880",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon1/in7_input": "0",
}

AGX_ORIN = {
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC",
    "sys/class/hwmon/hwmon1/in1_input": "19000",
    "sys/class/hwmon/hwmon1/curr1_input": "100",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "19000",
    "sys/class/hwmon/hwmon1/curr2_input": "20",
    "sys/class/hwmon/hwmon1/in3_label": "VIN_SYS_5V0",
    "sys/class/hwmon/hwmon1/in3_input": "5000",
    "sys/class/hwmon/hwmon1/curr3_input": "600",
    "sys/class/hwmon/hwmon2/name": "ina3221",
    "sys/class/hwmon/hwmon2/in1_label": "NC",
    "sys/class/hwmon/hwmon2/in2_label": "VDDQ_VDD2_1V8AO",
    "sys/class/hwmon/hwmon2/in2_input": "5000",
    "sys/class/hwmon/hwmon2/curr2_input": "120",
    "sys/class/hwmon/hwmon2/in3_label": "NC",
}

JETSON_NANO = {
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "2381",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1": "POM_5V_GPU",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input": "40",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_2": "POM_5V_CPU",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power2_input": "483",
}

LAPTOP = {
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/power_now": "4210000",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/status": "Discharging",
}

UPS_HAT = {
    "sys/class/power_supply/max17040/type": "Battery",
    "sys/class/power_supply/max17040/status": "Discharging",
    "sys/class/power_supply/max17040/voltage_now": "3900000",
    "sys/class/power_supply/max17040/current_now": "-800000",
}

# What `vcgencmd pmic_read_adc` said on a Raspberry Pi 5 at rest.
PI5 = """\
 3V7_WL_SW_A current(0)=0.00195186A
   3V3_SYS_A current(1)=0.12589500A
   1V8_SYS_A current(2)=0.23129540A
  DDR_VDD2_A current(3)=0.00000000A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.18835450A
    0V8_SW_A current(6)=0.30644200A
  VDD_CORE_A current(7)=0.82156000A
   3V3_DAC_A current(17)=0.00000000A
   3V3_ADC_A current(18)=0.00000000A
   0V8_AON_A current(16)=0.00311355A
      HDMI_A current(22)=0.00036630A
 3V7_WL_SW_V volt(8)=3.70720000V
   3V3_SYS_V volt(9)=3.30260900V
   1V8_SYS_V volt(10)=1.81294100V
  DDR_VDD2_V volt(11)=1.10732500V
  DDR_VDDQ_V volt(12)=0.60183090V
   1V1_SYS_V volt(13)=1.10622600V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.81203820V
   3V3_DAC_V volt(20)=3.30952000V
   3V3_ADC_V volt(21)=3.31226800V
   0V8_AON_V volt(19)=0.79912020V
      HDMI_V volt(23)=5.12416000V
     EXT5V_V volt(24)=5.13756000V
      BATT_V volt(25)=0.00000000V
"""


def build(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files of a layout under `root`; return it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def with_vcgencmd(root: Path, says: str, status: int = 0) -> Path:
    """Put a `vcgencmd` under `root` that says what a real one said; return `root`."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "said").write_text(says)
    command = root / "usr/bin/vcgencmd"
    command.write_text(f'#!/bin/sh\n[ "$1" = pmic_read_adc ] || exit 9\ncat "{root}/said"\nexit {status}\n')
    command.chmod(0o755)
    return root
